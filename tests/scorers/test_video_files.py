import builtins

import numpy as np
import pytest
import torch
from PIL import Image

from bench.scorers import video_files
from bench.scorers.video_files import encoded, read_video, through_file, video_rate, video_size, write_video

av = pytest.importorskip("av")


def scene(frames=12, height=48, width=64):
    """A bright square that goes right over a ramp: [frame, 3, height, width] in 8 bits."""
    ramp = np.linspace(30, 200, width, dtype=np.uint8)
    video = np.tile(ramp, (frames, 3, height, 1))
    for at in range(frames):
        video[at, 0, 8:24, 4 + 2 * at : 20 + 2 * at] = 250
    return torch.from_numpy(video)


def cut(path, keep):
    data = path.read_bytes()
    short = path.with_name(f"short{path.suffix}")
    short.write_bytes(data[: int(len(data) * keep)])
    return short


def other(path, kind, codec, **options):
    """The scene in another container."""
    with av.open(str(path), "w", format=kind, container_options=options) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in scene().permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def animated(path, **options):
    pictures = [Image.fromarray(frame) for frame in scene().permute(0, 2, 3, 1).numpy()]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=125, loop=0, **options)
    return path


def near(read, levels):
    return (read.float() - scene().float()).abs().mean() < levels


@pytest.mark.parametrize("fps", [8.0, 16.0, 24000 / 1001])
def test_an_mp4_comes_back_with_its_frames_and_its_rate(tmp_path, fps):
    write_video(tmp_path / "a.mp4", scene(), fps)
    frames, rate = read_video(tmp_path / "a.mp4")
    assert frames.dtype == torch.uint8
    assert frames.shape == scene().shape
    assert rate == pytest.approx(fps, rel=1e-4)
    assert near(frames, 3.0)
    assert not torch.equal(frames, scene()), "H.264 loses something"


def test_a_lower_crf_loses_less():
    loss = [(through_file(scene(), 8.0, crf).float() - scene().float()).abs().mean() for crf in (10, 25, 40)]
    assert loss[0] < loss[1] < loss[2]


def test_writing_is_the_same_byte_for_byte():
    first, *again = (encoded(scene(), 8.0) for _ in range(12))
    assert all(one == first for one in again)


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (33, 35), (2, 2), (90, 16)])
def test_odd_sizes_stay_as_they_are(height, width):
    video = scene(4, 96, 64)[..., :height, :width]
    assert through_file(video, 8.0).shape == video.shape


def test_webm_gif_and_apng_are_read(tmp_path):
    for path in (
        other(tmp_path / "a.webm", "webm", "libvpx-vp9"),
        animated(tmp_path / "a.gif"),
        animated(tmp_path / "a.apng", format="PNG"),
        animated(tmp_path / "a.png"),
    ):
        frames, rate = read_video(path)
        assert frames.shape == scene().shape, path
        assert rate == pytest.approx(8.0, rel=0.05), path
        assert near(frames, 8.0), path
    assert torch.equal(read_video(tmp_path / "a.png")[0], scene()), "a PNG loses nothing"


def test_the_size_is_known_before_a_frame_is_decoded(tmp_path):
    write_video(tmp_path / "a.mp4", scene(), 8.0)
    assert video_size(tmp_path / "a.mp4") == (12, 48, 64)
    assert video_size(other(tmp_path / "a.webm", "webm", "libvpx-vp9")) == (12, 48, 64)
    for name in ("a.gif", "a.png", "a.webp"):
        assert video_size(animated(tmp_path / name)) == (12, 48, 64)
    (tmp_path / "b.mp4").write_bytes(b"these are words")
    with pytest.raises(ValueError, match=r"b\.mp4 is no video, or damaged"):
        video_size(tmp_path / "b.mp4")


def test_the_rate_is_known_without_the_frames(tmp_path):
    write_video(tmp_path / "a.mp4", scene(), 24000 / 1001)
    for path in (tmp_path / "a.mp4", other(tmp_path / "a.webm", "webm", "libvpx-vp9"), animated(tmp_path / "a.png")):
        assert video_rate(path) == read_video(path)[1]


@pytest.mark.parametrize("text", [b"", b"these are words", b"\x00\x00\x00\x20ftypisom" + bytes(64)])
@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "apng"])
def test_what_is_no_video_is_refused(tmp_path, suffix, text):
    (tmp_path / f"a.{suffix}").write_bytes(text)
    with pytest.raises(ValueError, match=rf"a\.{suffix} (is no video|has no)"):
        read_video(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_file_that_is_cut_short_is_refused(tmp_path, keep):
    write_video(tmp_path / "a.mp4", scene(), 8.0)
    files = (
        tmp_path / "a.mp4",
        other(tmp_path / "index-first.mp4", "mp4", "libx264", movflags="faststart"),
        other(tmp_path / "a.webm", "webm", "libvpx-vp9"),
        animated(tmp_path / "a.gif"),
        animated(tmp_path / "a.apng", format="PNG"),
    )
    for path in files:
        with pytest.raises(ValueError, match=r"cut short|damaged|has no"):
            read_video(cut(path, keep))


def test_sound_alone_and_one_picture_are_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="has no video in it"):
        read_video(tmp_path / "a.mp4")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is one image, and no video"):
        read_video(tmp_path / "a.png")


def test_an_absurd_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", scene(), 8.0)
    animated(tmp_path / "a.gif")
    for name in ("a.mp4", "a.gif"):
        with pytest.raises(ValueError, match=r"is too large: 12 frames of 64 x 48 are .* GB"):
            read_video(tmp_path / name, limit=12 * 48 * 64 * 3 - 1)
        assert len(read_video(tmp_path / name, limit=12 * 48 * 64 * 3)[0]) == 12
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"damaged.*exceeds"):
        read_video(tmp_path / "a.gif")


def test_nothing_can_be_written_of_no_frames_or_at_no_rate(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        write_video(tmp_path / "a.mp4", scene()[:0], 8.0)
    with pytest.raises(ValueError, match="at 0 frames a second cannot be written"):
        write_video(tmp_path / "a.mp4", scene(), 0.0)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4 is no file"):
        read_video(tmp_path / "gone.mp4")


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", scene(), 8.0)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: read_video(tmp_path / "a.mp4"), lambda: video_files.encoded(scene(), 8.0)):
        with pytest.raises(ModuleNotFoundError, match=r"needs PyAV: pip install 'arbor-bench\[video\]' brings it"):
            call()
