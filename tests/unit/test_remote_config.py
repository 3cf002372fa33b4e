"""``policy=remote`` and ``job=serve`` on the command line: what is accepted, what is refused."""

import pytest
from hydra import compose, initialize_config_dir

from cluster.placement import processes
from configs import schema

schema.register()


@pytest.fixture
def run_of(request):
    folder = str(request.config.rootpath / "configs")

    def composed(*overrides):
        with initialize_config_dir(folder, version_base=None):
            return schema.to_run(compose("run", overrides=list(overrides)))

    return composed


@pytest.mark.parametrize(
    ("host", "port", "uri"),
    [
        ("127.0.0.1", 8000, "ws://127.0.0.1:8000"),
        ("gpu1.lab", 9000, "ws://gpu1.lab:9000"),
        ("::1", 8000, "ws://[::1]:8000"),
        ("wsbox", 8000, "ws://wsbox:8000"),
        ("wss://policies.lab/pi05", 8000, "wss://policies.lab/pi05"),
    ],
)
def test_the_address_of_a_server(run_of, host, port, uri):
    run = run_of("policy=remote", f"policy.remote.host='{host}'", f"policy.remote.port={port}")
    assert run.policy.remote.uri == uri


def test_a_remote_policy_is_never_trained(run_of):
    run = run_of("policy=remote")
    names = [process.name for process in processes(run, ["book"])]
    assert "policy learner" not in names
    assert {"policy server", "world model learner", "imagination book"} <= set(names)
    with pytest.raises(
        ValueError, match=r"cannot be trained.*method\.update_policy=false.*job=eval"
    ):
        run_of("policy=remote", "method.update_policy=true")
    assert run_of("policy=remote", "method.update_policy=true", "job=evaluate")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy=remote", "policy.noise=0.5"], "policy.noise=0.5: a policy server draws its own"),
        (["policy=remote", "evaluation.noise=0"], "evaluation.noise=0.0: a policy server draws"),
        (["policy=remote", "job=serve"], "job=serve needs the policy's weights"),
        (["policy=remote", "policy.checkpoint=/m/pi05"], "policy.checkpoint=/m/pi05 is not read"),
        (["policy=remote", "policy.remote.host=''"], "policy.remote.host=''"),
        (["policy=remote", "policy.remote.port=0"], "policy.remote.port=0"),
        (["policy=remote", "policy.remote.connections=0"], "policy.remote.connections=0"),
        (["policy=remote", "policy.remote.request_timeout_s=0"], "request_timeout_s=0"),
        (["policy=remote", "policy.remote.exterior_view=2"], "policy.remote.exterior_view='2'"),
        (["job=serve", "policy=pi05"], "would use random weights"),
        (["job=evaluate", "policy.checkpoint=scratch"], "would use random weights"),
        (["job=serve", "serve.port=70000"], "serve.port=70000"),
        (["job=serve", "serve.host=0.0.0.0"], "can be reached from other machines"),
        (["job=serve", "serve.host=robot.lab"], "can be reached from other machines"),
        (["job=serve", "serve.device=tpu"], "serve.device='tpu'"),
    ],
)
def test_refusals_name_the_flag(run_of, overrides, said):
    with pytest.raises(ValueError, match=said):
        run_of(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["job=serve", "serve.host=0.0.0.0", "serve.key_file=none"],
        ["job=serve", "serve.host=0.0.0.0", "serve.key_file=/etc/policy.key"],
        ["job=serve", "serve.host=127.0.0.2"],
        ["job=serve", "serve.host='::1'", "serve.port=0"],
        ["job=serve", "serve.host=localhost"],
        ["job=serve", "scale=full", "policy.checkpoint=/m/pi05"],  # no other model is needed
        ["job=evaluate", "scale=full", "policy.checkpoint=/m/pi05"],
        ["scale=full", "policy=remote", "job=evaluate"],
    ],
)
def test_these_are_fine(run_of, overrides):
    assert run_of(*overrides).job in ("serve", "evaluate")
