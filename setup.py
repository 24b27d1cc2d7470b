"""Packaging: `pip install .` gives the three commands, `offline_distill` and its Python API.

The packages are installed under the names that they have here. `offline_distill` is the folder
`pipeline/api`, so that Python code needs no other name. The tools for developers in `tools/dev`
run in a clone only.
"""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
REQUIREMENTS = [
    line.strip()
    for line in (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]

# The newest minor version that the suite was run with is the bound.
JAX = "jax>=0.7,<0.11"
# Pages and charts.
REPORT = ["jinja2>=3.1", "matplotlib>=3.8"]
OURS = ("pipeline", "data_specs", "tools")
PACKAGES = [f"{name}{end}" for name in OURS for end in ("", ".*")]

setup(
    name="offline-distill",
    version="0.1.0",
    description="Offline distillation of BERT-like masked language models, in three stages",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "offline_distill",
        *find_packages(include=PACKAGES, exclude=["tools.dev", "tools.dev.*"]),
    ],
    package_dir={"offline_distill": "pipeline/api"},
    package_data={
        "data_specs": ["corpora/*.yaml", "tasks/*.yaml", "recipes/*.flags"],
        # Templates of pages, and the teacher of the quickstart.
        "tools": ["**/*.jinja", "quickstart_teacher/*"],
    },
    install_requires=REQUIREMENTS,
    extras_require={
        "jax": [JAX],
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22", JAX.replace("jax", "jax[cuda12]")],
        "tpu": [JAX.replace("jax", "jax[tpu]")],
        "ray": ["ray>=2.50"],
        "remote": ["gcsfs>=2024.6", "s3fs>=2024.6"],
        "export": [
            "tf2onnx>=1.17",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "ai-edge-litert>=2.0",
            "tensorflow-text>=2.20",
        ],
        "quickstart": ["snownlp>=0.12.3", *REPORT],
        "report": REPORT,
        "peers": ["torch", "transformers>=4.50", "jieba>=0.42"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6",
            "import-linter>=2",
            "ruff>=0.9",
            "vulture>=2.14",
            JAX,
            *REPORT,
        ],
    },
    entry_points={
        "console_scripts": [
            "create_pretraining_data=pipeline.create_pretraining_data:main",
            "create_teacher_output_data=pipeline.create_teacher_output_data:main",
            "run_distill=pipeline.run_distill:main",
            "offline_distill=pipeline.commands.offline_distill:main",
        ]
    },
)
