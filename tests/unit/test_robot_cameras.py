"""Cameras of a rig: newest pictures by threads or a shared file, and what a lost one says."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import mujoco
import numpy as np
import pytest

from configs.robot import RobotConfig
from contracts.constants import VIEWS
from envs.droid.cameras import open_cameras
from envs.droid.cameras.grabbing import GrabbedCameras
from envs.droid.cameras.newest import Newest
from envs.droid.cameras.shared import layout
from envs.droid.cameras.uvc import UvcSource
from envs.droid.rig import Frame
from envs.droid.standin.physics import WORLD, Physics
from envs.droid.standin.views import Views
from envs.mujoco.render import open_renderer

ROOT = Path(__file__).parents[2]
SIZE = (24, 40)
SMALL = (48, 80)
SERIALS = {"kind": "zed", "exterior_1": 11, "exterior_2": 12, "wrist": 13}
BGR = (10, 120, 240)


class Shutter:
    """A camera that takes a picture when a test says so."""

    def __init__(self, name):
        self.name, self.due, self.closed = name, threading.Semaphore(1), False
        self.why_not = ""
        self.taken = 0

    def open(self): ...

    def grab(self):
        self.due.acquire()
        if self.why_not:
            raise OSError(self.why_not)
        self.taken += 1
        return Frame(np.full((*SIZE, 3), self.taken, np.uint8), float(self.taken))

    def close(self):
        self.closed = True

    def take(self, why_not=""):
        self.why_not = why_not
        self.due.release()


@pytest.fixture
def shutters():
    made = {view: Shutter(f"camera {view}") for view in VIEWS}
    cameras = GrabbedCameras(made)
    cameras.open()
    yield cameras, made
    for shutter in made.values():
        shutter.take("the end")
    cameras.close()


def wait(what, seconds=5.0):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


def test_frames_are_the_newest_pictures_and_never_waited_for(shutters):
    cameras, made = shutters
    assert [frame.captured_s for frame in cameras.frames()] == [1, 1, 1]
    made["wrist"].take()
    made["wrist"].take()
    wait(lambda: cameras.frames()[2].captured_s == 3)
    began = time.monotonic()
    for _ in range(100):
        ages = [frame.captured_s for frame in cameras.frames()]
    assert ages == [1, 1, 3]
    assert time.monotonic() - began < 0.5


def test_a_lost_camera_is_named_with_what_it_said(shutters):
    cameras, made = shutters
    made["exterior_2"].take("the cable")
    wait(lambda: made["exterior_2"].closed)
    with pytest.raises(OSError, match=r"exterior_2 \(camera exterior_2\) is gone: the cable"):
        cameras.frames()


def test_a_camera_without_a_first_picture_does_not_open(monkeypatch):
    monkeypatch.setattr("envs.droid.cameras.grabbing.FIRST_PICTURE_S", 0.05)
    made = {view: Shutter(view) for view in VIEWS}
    made["wrist"].due.acquire()
    cameras = GrabbedCameras(made)
    with pytest.raises(OSError, match=r"no picture of wrist \(wrist\) within 0\.05 s"):
        cameras.open()
    for shutter in made.values():
        shutter.take("the end")
    cameras.close()


class FakeZed:
    """The part of the ZED SDK that is used. It shows one colour at 720p, BGRA."""

    opened, closed, fail = [], [], set()

    def open(self, wanted):
        assert (wanted.camera_resolution, wanted.camera_fps, wanted.depth_mode) == ("720", 60, "no")
        self.serial = wanted.serial
        self.opened.append(self.serial)
        return "in use" if ("open", self.serial) in self.fail else "ok"

    def grab(self, runtime):
        del runtime
        time.sleep(0.005)
        return "unplugged" if ("grab", self.serial) in self.fail else "ok"

    def retrieve_image(self, picture, view):
        assert view == "left"
        picture.pixels = np.full((720, 1280, 4), (*BGR, 255), np.uint8)

    def close(self):
        self.closed.append(self.serial)


class FakeMat:
    def get_data(self):
        return self.pixels


class FakeParameters:
    def set_from_serial_number(self, serial):
        self.serial = serial


@pytest.fixture
def zed(monkeypatch):
    sl = ModuleType("pyzed.sl")
    sl.Camera = type("Camera", (FakeZed,), {"opened": [], "closed": [], "fail": set()})
    sl.Mat, sl.InitParameters, sl.RuntimeParameters = FakeMat, FakeParameters, SimpleNamespace
    sl.ERROR_CODE, sl.VIEW = SimpleNamespace(SUCCESS="ok"), SimpleNamespace(LEFT="left")
    sl.RESOLUTION, sl.DEPTH_MODE = SimpleNamespace(HD720="720"), SimpleNamespace(NONE="no")
    monkeypatch.setitem(sys.modules, "pyzed", ModuleType("pyzed"))
    monkeypatch.setitem(sys.modules, "pyzed.sl", sl)
    return sl.Camera


def test_zed_pictures_are_the_left_lens_in_rgb_and_of_the_wanted_size(zed):
    cameras = open_cameras(SERIALS, SIZE)
    assert cameras.names == ("11", "12", "13")
    cameras.open()
    frames = cameras.frames()
    now = time.monotonic()
    cameras.close()
    assert zed.opened == [11, 12, 13]
    assert sorted(zed.closed) == [11, 12, 13]
    for frame in frames:
        assert frame.image.shape == (*SIZE, 3)
        assert tuple(frame.image[3, 5]) == BGR[::-1]
        assert 0.04 < now - frame.captured_s < 1.0


@pytest.mark.parametrize(
    ("fault", "said"),
    [(("open", 12), "ZED camera 12 does not open"), (("grab", 13), "wrist .13. is gone: it did")],
)
def test_a_zed_that_fails_is_an_error_that_names_it(zed, fault, said):
    zed.fail.add(fault)
    cameras = open_cameras(SERIALS, SIZE)
    with pytest.raises(OSError, match=said):
        cameras.open()
    cameras.close()


def test_a_camera_over_usb_gives_its_pictures_in_order_until_they_end(tmp_path):
    file = tmp_path / "film.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "bgr0"
        for level in (50, 100, 200):
            pixels = np.full((48, 80, 3), (level, 10, 20), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    source = UvcSource(str(file), SIZE)
    source.open()
    images = [source.grab().image for _ in range(3)]
    assert [image.shape for image in images] == [(*SIZE, 3)] * 3
    for image, level in zip(images, (50, 100, 200), strict=True):
        np.testing.assert_allclose(image[8, 8], (level, 10, 20), atol=3)
    with pytest.raises(OSError, match="have ended"):
        source.grab()
    source.close()


def test_a_camera_that_is_not_there_says_how_to_find_it():
    cameras = open_cameras({view: 97 for view in VIEWS} | {"kind": "uvc"}, SIZE)
    with pytest.raises(OSError, match=r"no camera at /dev/video97 .*v4l2-ctl"):
        cameras.open()
    cameras.close()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "kind in .cameras."),
        ({"kind": "zed"}, "also needs exterior_1, exterior_2, wrist"),
        (SERIALS | {"frames": "x"}, "frames is unknown for kind = 'zed'"),
        (SERIALS | {"wrist": "13"}, "wrist = '13' must be a serial number"),
        ({view: 0.5 for view in VIEWS} | {"kind": "uvc"}, "must be like 0 or '/dev/video0'"),
        ({"kind": "shared"}, "also needs frames"),
    ],
)
def test_a_wrong_table_says_what_to_change(zed, table, said):
    with pytest.raises(ValueError, match=said):
        open_cameras(table, SIZE)


def test_without_the_zed_sdk_its_installer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyzed.sl", None)
    with pytest.raises(ValueError, match=r"ZED SDK with its Python API: run .* not pip install"):
        open_cameras(SERIALS, SIZE)


def test_shared_pictures_need_a_writer_of_the_same_size(tmp_path):
    cameras = open_cameras({"kind": "shared", "frames": str(tmp_path / "frames")}, SIZE)
    with pytest.raises(OSError, match=r"--frames .* and the same --size"):
        cameras.open()
    other = Newest.create(tmp_path / "frames", layout((48, 80)))
    with pytest.raises(OSError, match="the same --size"):
        cameras.open()
    del other
    ours = Newest.create(tmp_path / "frames", layout(SIZE))
    cameras.open()
    with pytest.raises(OSError, match="is the stand-in running"):
        cameras.frames()
    ours.put(scene=1, captured_s=[1.5, 2.5, 3.5], images=np.full((3, *SIZE, 3), 7, np.uint8))
    frames = cameras.frames()
    assert [frame.captured_s for frame in frames] == [1.5, 2.5, 3.5]
    assert all((frame.image == 7).all() for frame in frames)


WRITER = """
import sys, numpy as np
from pathlib import Path
from envs.droid.cameras.newest import Newest
from envs.droid.cameras.shared import layout
box = Newest.create(Path(sys.argv[1]), layout((24, 40)))
while True:
    for level in range(1, 256):
        images = np.full((3, 24, 40, 3), level, np.uint8)
        box.put(scene=level, captured_s=[level] * 3, images=images)
"""


def test_a_value_is_whole_even_while_another_process_writes_as_fast_as_it_can(tmp_path):
    file = tmp_path / "frames"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], cwd=ROOT)
    try:
        wait(file.is_file, 20)
        box, seen = Newest.attach(file, layout(SIZE)), set()
        until = time.monotonic() + 2
        while time.monotonic() < until:
            value = box.get()
            if value is not None:
                level = int(value["scene"])
                assert (value["images"] == level).all()
                assert (value["captured_s"] == level).all()
                seen.add(level)
        assert len(seen) > 20
    finally:
        writer.kill()
        writer.wait(10)


@pytest.fixture
def drawn(tmp_path):
    """A laid scene, and who draws it elsewhere."""
    world = Newest.create(tmp_path / "world", WORLD)
    frames = Newest.create(tmp_path / "frames", layout(SMALL))
    config = RobotConfig(height=SMALL[0], width=SMALL[1], renderer="ray")
    return Physics(world), Views(world, frames, config), frames


@pytest.mark.parametrize("task", ["book", "erase"])
def test_the_stand_ins_cameras_see_what_is_there(drawn, task):
    physics, views, frames = drawn
    physics.lay(task, 5)
    views.draw()
    first = frames.get()["images"]
    sim = physics.sim
    sim.aim(sim.target + 0.2, 1.0)
    sim.run(150)
    if sim.canvas is not None:
        sim.canvas[:100] = 0
    physics._show()
    views.draw()
    mujoco.mj_forward(sim.model, sim.data)  # a step leaves the bodies where it began
    expected = open_renderer("ray", sim.model, *SMALL).render(sim)
    np.testing.assert_array_equal(frames.get()["images"], expected)
    assert not np.array_equal(first, expected)


def test_the_first_picture_of_a_scene_is_taken_when_the_scene_is_there(drawn):
    physics, views, frames = drawn
    inner = views._robot.reset

    def slowly(task, seed):
        time.sleep(0.2)
        return inner(task, seed)

    views._robot.reset = slowly
    physics.lay("stack", 1)
    began = time.monotonic()
    views.draw()
    picture = frames.get()
    assert picture["scene"] == 1
    assert picture["captured_s"].min() > began + 0.2


def test_a_dropped_view_keeps_its_last_picture_and_the_others_go_on(drawn):
    physics, views, frames = drawn
    physics.lay("stack", 1)
    views.draw()
    before = frames.get()
    physics.dropped[1] = True
    physics._show()
    views.draw()
    after = frames.get()["captured_s"] > before["captured_s"]
    assert after.tolist() == [True, False, True]
