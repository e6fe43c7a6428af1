"""Functional models: backbones, classifiers and their builders."""
