"""The family "mage": masked generative encoders."""
