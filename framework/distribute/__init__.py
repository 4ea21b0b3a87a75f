"""Where a run computes: devices and strategies, the cluster of its processes, and the replicas that share a step."""
