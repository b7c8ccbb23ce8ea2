"""What an engine's processes print, remembered and passed on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.engine_voice import EngineVoice
from cluster.vllm_plugin import VOICE_VARIABLE

SPEAKER = "import os; from cluster.vllm_plugin import _speak_to; _speak_to(os.environ['BATON_ENGINE_VOICE']);"


@pytest.fixture
def voice() -> Iterator[EngineVoice]:
    voice = EngineVoice(keep_lines=50)
    yield voice
    voice.close()


def say(voice: EngineVoice, program: str, last: bool = True) -> None:
    environment = os.environ | {VOICE_VARIABLE: voice.path}
    subprocess.run([sys.executable, "-c", SPEAKER + program], env=environment, check=False, timeout=30)
    if last:
        voice.seal()
        voice.wait_for_end(10)


def test_the_last_exception_is_found_below_prefixes_and_the_tail_is_kept(
    voice: EngineVoice, capfd: pytest.CaptureFixture[str]
) -> None:
    say(
        voice,
        "print('loading'); print('(EngineCore pid=7) ERROR 11-21 10:00:00 [core.py:15] ValueError: no room: 3 MiB');"
        "print('(EngineCore pid=7) and so it ends')",
    )
    assert voice.last_words() == "ValueError: no room: 3 MiB"
    assert voice.tail(2)[-1] == "(EngineCore pid=7) and so it ends"
    assert "loading" in capfd.readouterr().err


def test_a_traceback_on_stderr_is_heard(voice: EngineVoice) -> None:
    say(voice, "raise RuntimeError('broken')")
    assert voice.last_words() == "RuntimeError: broken"


def test_a_process_that_comes_and_goes_before_the_engine_does_not_end_the_listening(voice: EngineVoice) -> None:
    """As the one in which vLLM looks at a model that it does not know yet."""
    say(voice, "print('only looking')", last=False)
    while "only looking" not in voice.tail():
        time.sleep(0.001)
    say(voice, "raise RuntimeError('out of memory')")
    assert voice.last_words() == "RuntimeError: out of memory"


def test_words_without_an_exception_are_no_last_words(voice: EngineVoice) -> None:
    say(voice, "print('Error handling is on: fine')")
    assert voice.last_words() == ""


def test_the_end_of_the_last_process_is_heard_although_the_pipe_was_sealed(voice: EngineVoice) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SPEAKER + "print('here', flush=True); input(); print('gone')"],
        env=os.environ | {VOICE_VARIABLE: voice.path},
        stdin=subprocess.PIPE,
    ) as process:
        while "here" not in voice.tail():
            assert process.poll() is None
        voice.seal()
        assert not os.path.exists(voice.path)
        process.communicate(b"\n", timeout=10)
    voice.wait_for_end(10)
    assert voice.tail(1) == ["gone"]


def test_closing_without_a_speaker_leaves_nothing_and_may_be_repeated() -> None:
    voice = EngineVoice()
    folder = os.path.dirname(voice.path)
    voice.close()
    voice.close()
    assert not os.path.exists(folder)


def test_a_sealed_voice_to_which_nobody_spoke_ends() -> None:
    voice = EngineVoice()
    voice.seal()
    voice.wait_for_end(10)
    voice._reader.join(10)
    assert not voice._reader.is_alive()


def test_the_tail_can_be_read_while_the_engine_speaks(voice: EngineVoice) -> None:
    """As it is where an engine dies while others of its processes still print."""
    voice.close()
    many, ended = [b"line"] * 50, threading.Event()

    def speak() -> None:
        while not ended.is_set():
            voice._hear(many)

    speaker, before = threading.Thread(target=speak), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    speaker.start()
    try:
        for _ in range(1_000):
            voice.tail()
            voice.last_words()
    finally:
        ended.set()
        speaker.join()
        sys.setswitchinterval(before)
