"""How fast the simulated robot is: expert episodes per minute and core, and cost of its images.

Run: python benchmarks/simulation.py [--episodes 20] [--height 48] [--width 80]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from configs.robot import RobotConfig
from envs.mujoco.experts import demonstrate
from envs.mujoco.render import open_renderer
from envs.mujoco.robot import TASK_CLASSES, MujocoRobot
from envs.mujoco.sim import Simulation
from envs.mujoco.stack import Stack


def episodes(config: RobotConfig, task: str, count: int) -> str:
    """One line: success, length and speed of the scripted expert with frames at 5 Hz."""
    robot = MujocoRobot(config)
    robot.reset(task, 0)
    robot.observe()
    start = time.process_time()
    results = [demonstrate(robot, task, seed) for seed in range(count)]
    seconds = time.process_time() - start
    robot.close()
    successes = sum(success for _, success in results)
    ticks = np.mean([trajectory.num_ticks for trajectory, _ in results])
    return (
        f"{task:6} {config.renderer:4} success {successes}/{count}, {ticks:5.0f} ticks, "
        f"{seconds / count:.3f} cpu s, {60 * count / seconds:4.0f} episodes/min/core"
    )


def images(kind: str, height: int, width: int) -> str:
    """One line: cpu milliseconds of three views, best of five rounds."""
    sim = Simulation(Stack())
    sim.reset(np.random.default_rng(0))
    renderer = open_renderer(kind, sim.model, height, width)
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(10):
            renderer.render(sim)
        rounds.append((time.process_time() - start) / 10)
    renderer.close()
    return f"{kind:4} {height}x{width}: {1e3 * min(rounds):.1f} ms for 3 views"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--width", type=int, default=80)
    options = parser.parse_args()
    for kind in ("egl", "ray"):
        try:
            print(images(kind, options.height, options.width))
        except ValueError as error:
            print(error)
            continue
        config = RobotConfig(height=options.height, width=options.width, renderer=kind)
        for task in TASK_CLASSES:
            print(episodes(config, task, options.episodes), flush=True)


if __name__ == "__main__":
    main()
