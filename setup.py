"""Packaging: `pip install .` gives the three commands."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
REQUIREMENTS = [
    line.strip()
    for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]

setup(
    name="offline-distill",
    version="0.1.0",
    description="Offline, two-stage distillation of BERT-like masked language models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pipeline", "pipeline.*", "data_specs", "data_specs.*"]),
    package_data={"data_specs": ["corpora/*.yaml", "tasks/*.yaml", "recipes/*.flags"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "jax": ["jax>=0.7"],
        "gpu": ["tensorflow[and-cuda]>=2.20", "jax[cuda12]>=0.7"],
        "tpu": ["jax[tpu]>=0.7"],
        "ray": ["ray>=2.50"],
        "remote": ["gcsfs>=2024.6", "s3fs>=2024.6"],
        "export": [
            "tf2onnx>=1.17",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "ai-edge-litert>=2.0",
            "tensorflow-text>=2.20",
        ],
        "quickstart": ["snownlp>=0.12.3", "matplotlib>=3.8"],
        "report": ["jinja2>=3.1", "matplotlib>=3.8"],
        "peers": ["torch", "transformers>=4.50", "jieba>=0.42"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "ruff>=0.9",
            "jax>=0.7",
            "jinja2>=3.1",
            "matplotlib>=3.8",
        ],
    },
    entry_points={
        "console_scripts": [
            "create_pretraining_data=pipeline.create_pretraining_data:main",
            "create_teacher_output_data=pipeline.create_teacher_output_data:main",
            "run_distill=pipeline.run_distill:main",
        ]
    },
)
