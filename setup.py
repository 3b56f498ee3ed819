"""ament_python and pip both read this: ``colcon build`` from ros2_ws/, or ``pip install -e .``."""

from glob import glob

from setuptools import find_packages, setup

NAME = "fastdrive_node"


ROS = [
    "ros-rclpy[fastrtps]==7.1.6",
    "ros-jazzy-sensor-msgs",
    "ros-jazzy-nav-msgs",
    "ros-jazzy-geometry-msgs",
    "ros-jazzy-std-msgs",
    "ros-jazzy-diagnostic-msgs",
    "ros-jazzy-visualization-msgs",
    "ros-jazzy-trajectory-msgs",
    "ros-jazzy-lifecycle-msgs",
    "ros-jazzy-std-srvs",
    "opencv-python-headless>=4.8,<5",
]
PARQUET = ["pyarrow>=15,<26"]  # 26 needs numpy 2
TRAIN = [
    *PARQUET,
    "shapely>=2",
    "nuscenes-devkit>=1.2",
    "pycocotools>=2.0.7",
    "scikit-learn>=1.3",
    "matplotlib>=3.8",
    "jinja2>=3.1",
    "accelerate>=1.2",
    "tensorboard>=2.15",
]
SIM = ["moderngl>=5.11", "opencv-python-headless>=4.8,<5"]
EXPORT = ["onnx>=1.16", "onnxruntime>=1.20"]

setup(
    name=NAME,
    version="0.1.0",
    description="FastDriveVLA's ReconPruner in a ROS 2 node: six cameras to a trajectory, in time",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=[NAME, f"{NAME}.*"]) + find_packages("training") + find_packages("export"),
    package_dir={
        "fastdrive_training": "training/fastdrive_training",
        "fastdrive_export": "export/fastdrive_export",
    },
    package_data={
        "fastdrive_training": ["recipes/*.yaml"],
        "fastdrive_training.annotate": ["*.yaml"],
        "fastdrive_training.reports.open_loop": ["*.j2"],
        "fastdrive_training.reports.pruner_run": ["*.j2"],
    },
    install_requires=[
        "numpy>=1.24,<2",
        "torch>=2.4",
        "transformers>=5.23,<6",
        "safetensors>=0.4",
        "pillow>=10",
        "pydantic>=2.7,<3",
        "filelock>=3.13",
        "pyyaml>=6",
        "jsonschema>=4",
        "rich>=13",
        "tqdm>=4.66",
        "rosbags>=0.11,<0.12",
    ],
    extras_require={
        "ros": ROS,
        "train": TRAIN,
        "waymo": PARQUET,
        "sim": SIM,
        "export": EXPORT,
        "dev": ["torchmetrics>=1.4", "pytest>=8", "hypothesis>=6.100", "ruff>=0.6", "cv-bridge>=1.13"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.py")),
        (f"share/{NAME}/config", glob("config/*")),
        (f"share/{NAME}/models/tiny", glob("models/tiny/*")),
    ],
    entry_points={
        "console_scripts": [
            "fastdrive = fastdrive_node.cli:main",
            "fastdrive_node = fastdrive_node.ros.node:main",
        ],
        "fastdrive.commands": [
            f"{package} = {package}.commands" for package in (NAME, "fastdrive_training", "fastdrive_export")
        ],
    },
)
