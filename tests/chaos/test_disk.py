"""A disk without room, with and without the right to mount one."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from chaos.fleet import SCRATCH_BYTES, Disk, limit_files

_WRITER = """
import sys
from pathlib import Path
sys.stdin.readline()
try:
    Path(sys.argv[1]).write_bytes(bytes(10_000))
except OSError as error:
    print(error.errno)
"""


def test_a_small_disk_is_filled_and_freed(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "scratch")
    if not disk.is_mounted:
        pytest.skip("nothing may be mounted here")
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left") as error:
            (disk.folder / "one more").write_bytes(bytes(8192))
        assert error.value.errno == errno.ENOSPC
        disk.free()
        (disk.folder / "one more").write_bytes(bytes(SCRATCH_BYTES // 2))
    finally:
        disk.close()
    assert list(disk.folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="only Linux can limit another process")
def test_a_process_that_may_write_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        limit_files(psutil.Process(writer.pid), 4096)
        said, _ = writer.communicate("go\n", timeout=30)
    assert said.strip() == str(errno.EFBIG)
