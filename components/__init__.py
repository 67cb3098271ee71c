"""Define the steps for Kubeflow Pipelines: unpack inputs, call one function of ``csflow.steps``, write outputs."""
