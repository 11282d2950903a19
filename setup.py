"Build from settings.ini, which nbdev and setuptools share."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

train = cfg["train_requirements"].split()
notebooks = train + cfg["notebooks_requirements"].split()
denoise = cfg["denoise_requirements"].split()
fused = cfg["fused_requirements"].split()
onnx = cfg["onnx_requirements"].split()
dev = notebooks + denoise + fused + onnx + cfg["dev_requirements"].split()

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    url=cfg["git_url"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
    ],
    packages=[
        *find_packages(include=["slot_attention_nbdev", "slot_attention_nbdev.*"]),
        "slot_attention_nbdev.results",
    ],
    # the records that notebooks quote, so that they run away from the repository
    package_dir={"slot_attention_nbdev.results": "results"},
    package_data={
        "slot_attention_nbdev": ["weights/*", "apps/live_js/*"],
        "slot_attention_nbdev.results": ["*.json", "*/*.json"],
    },
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={
        "train": train,
        "denoise": denoise,
        "fused": fused,
        "onnx": onnx,
        "notebooks": notebooks,
        "dev": dev,
    },
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
