"""Engines that score: a method traced to a graph, and onnxruntime or OpenVINO to run it."""
