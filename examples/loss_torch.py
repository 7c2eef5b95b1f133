"""The unlearning loss on a PyTorch encoder, without copying features between the frameworks.

    python examples/loss_torch.py        # needs PyTorch

PyTorch computes the features, JAX computes the loss and its gradient with respect to the features, and
PyTorch continues the backward pass.
"""

import jax
import jax.numpy as jnp
import torch

from l2l_jax import noise_images, unlearning_loss


def to_jax(features: torch.Tensor) -> jax.Array:
    """Return a JAX array that shares the tensor's memory."""
    return jnp.from_dlpack(features.detach().contiguous())


@jax.jit
def loss_and_gradients(student_retain, teacher_retain, student_forget, teacher_noise):
    """Return the terms and the gradients with respect to the student's features."""

    def loss(student_retain, student_forget):
        return unlearning_loss(student_retain, teacher_retain, student_forget, teacher_noise, alpha=0.25)

    gradients, terms = jax.grad(loss, argnums=(0, 1), has_aux=True)(student_retain, student_forget)
    return terms, gradients


def encoder() -> torch.nn.Module:
    """Return an encoder from images `[batch, 192]` to features `[batch, 32]`."""
    return torch.nn.Sequential(torch.nn.Linear(192, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))


def main(steps: int = 300) -> dict[str, float]:
    """Unlearn, and return the two terms of the last step."""
    torch.manual_seed(0)
    retain, forget = 0.2 * torch.rand(16, 192), 1 - 0.2 * torch.rand(16, 192)
    teacher, student = encoder(), encoder()  # here: your trained model
    student.load_state_dict(teacher.state_dict())
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for step in range(steps):
        both = to_jax(torch.cat([retain, forget]).reshape(32, 8, 8, 3))
        drawn = noise_images(both, jax.random.key(step))[16:]
        noise = torch.from_dlpack(drawn).reshape(16, 192)
        masks = [torch.bernoulli(torch.full((16, 192), 0.5)) for _ in range(2)]  # T, the same for both models
        features = student(retain * masks[0]), student(forget * masks[1])
        with torch.no_grad():
            targets = teacher(retain * masks[0]), teacher(noise * masks[1])
        terms, gradients = loss_and_gradients(
            to_jax(features[0]), to_jax(targets[0]), to_jax(features[1]), to_jax(targets[1])
        )
        optimizer.zero_grad()
        torch.autograd.backward(features, [torch.from_dlpack(gradient) for gradient in gradients])
        optimizer.step()
    return {name: float(term) for name, term in terms.items()}


if __name__ == "__main__":
    print(main())
