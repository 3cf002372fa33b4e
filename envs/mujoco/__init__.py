"""A DROID rig simulated with MuJoCo: scene, tasks, success checks, experts and renderers."""
