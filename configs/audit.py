"""``job=audit``: a page on which people look at a run's trajectories and label imagined ones."""

from dataclasses import dataclass

from configs.checks import at_least, inside


@dataclass
class AuditConfig:
    """docs/audit.md"""

    host: str = "127.0.0.1"  # elsewhere a token is needed, which the printed address holds
    port: int = 8010  # 0: any free one
    key_file: str = ""  # file whose text is the token; "": on loopback none, elsewhere a random one
    n: int = 40  # imagined trajectories of each task that are drawn to be labelled
    seed: int = 0  # of the draw; another one draws another sample
    redraw: bool = False  # draw anew although a sample was drawn; labels stay

    def __post_init__(self) -> None:
        if not self.host or any(c.isspace() for c in self.host):
            raise ValueError(f"audit.host={self.host!r} is no address: give a name or address")
        inside("audit.port", self.port, -1, 65536)
        at_least("audit.n", self.n, 6)  # two of each stratum
        at_least("audit.seed", self.seed, 0)
