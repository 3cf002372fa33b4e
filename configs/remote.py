"""Policies that run elsewhere: where to find an openpi server, and how to be one."""

from dataclasses import dataclass

from configs.checks import at_least, inside, is_loopback, one_of

ANYBODY = "none"  # serve.key_file of a port that needs no key


@dataclass
class RemoteConfig:
    """``policy=remote``: any server that speaks openpi's protocol (docs/serving.md)."""

    host: str = "127.0.0.1"  # name or address; or a whole ws:// or wss:// URI, then without port
    port: int = 8000
    key_file: str = ""  # file whose text is sent as `Authorization: Api-Key <text>`; "": no key
    connections: int = 4  # requests under way at a time: a server answers one per connection
    connect_timeout_s: float = 10.0  # a refused connection is tried again this long
    request_timeout_s: float = 60.0  # openpi compiles at its first request
    exterior_view: int = 0  # which exterior camera the policy sees
    image_size: int = 224  # views are fitted into a black square of this side; 0: sent as they are

    def __post_init__(self) -> None:
        flag = "policy.remote"
        if not self.host or any(c.isspace() for c in self.host):
            raise ValueError(f"{flag}.host={self.host!r} names no server: give a name or address")
        inside(f"{flag}.port", self.port, 0, 65536)
        at_least(f"{flag}.connections", self.connections, 1)
        inside(f"{flag}.connect_timeout_s", self.connect_timeout_s, 0, 1e4)
        inside(f"{flag}.request_timeout_s", self.request_timeout_s, 0, 1e4)
        one_of(f"{flag}.exterior_view", str(self.exterior_view), ("0", "1"))
        at_least(f"{flag}.image_size", self.image_size, 0)

    @property
    def uri(self) -> str:
        if self.host.startswith(("ws://", "wss://")):
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host  # IPv6
        return f"ws://{host}:{self.port}"


@dataclass
class ServeConfig:
    """``job=serve``: one policy for openpi's clients (docs/serving.md)."""

    host: str = "127.0.0.1"  # 0.0.0.0: every network of this machine, which needs serve.key_file
    port: int = 8000  # 0: any free one; the first line of output tells which
    key_file: str = ""  # clients must send its text as their api_key; "none": anybody may ask
    max_batch: int = 8  # requests of different clients that one forward pass answers
    device: str = "auto"  # cpu, cuda, or auto: cuda where there is one
    seed: int = 0  # of requests that bring none

    def __post_init__(self) -> None:
        inside("serve.port", self.port, -1, 65536)
        at_least("serve.max_batch", self.max_batch, 1)
        at_least("serve.seed", self.seed, 0)
        one_of("serve.device", self.device, ("auto", "cpu", "cuda"))
        if not self.key_file and not is_loopback(self.host):
            raise ValueError(
                f"serve.host={self.host} can be reached from other machines: give "
                "serve.key_file=<file with a secret>, or serve.key_file=none to let anybody move "
                "whatever robot listens (openpi's own DROID script sends no key)"
            )
