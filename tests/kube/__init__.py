"""`make test-kube`: the demo of kuberay/ on a real cluster, with its pods deleted while it signs."""
