"""From a VLA directory and a pruner to one file for the vehicle: ONNX graph, TensorRT engine, manifest, parity."""
