"""The simulator as a second ament_python package."""

from setuptools import find_packages, setup

NAME = "fastdrive_sim"

setup(
    name=NAME,
    version="0.2.0",
    description="A driving world seen by cameras: nuScenes-schema datasets and rosbag2 bags for fastdrive_node",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"], f"{NAME}.drive.report": ["page.css", "page.js"]},
    install_requires=[
        "fastdrive_node",
        "numpy>=1.24,<2",
        "moderngl>=5.11",
        "opencv-python-headless>=4.8,<5",
        "pillow>=10",
        "rosbags>=0.11,<0.12",
        "scipy>=1.11",
        "tqdm>=4.66",
    ],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ],
    entry_points={"fastdrive.commands": [f"{NAME} = {NAME}.commands"]},
)
