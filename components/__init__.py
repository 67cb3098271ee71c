"""What Kubeflow Pipelines sees of a step: unpack inputs, call one function of ``csflow.steps``, write outputs."""
