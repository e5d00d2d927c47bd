"""`--resume` unpickles, so that what it reads must be one's own."""

import os

import pytest

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.own_files import check_own


def test_what_others_may_write_is_refused_by_name(tmp_path):
    run = tmp_path / "run"
    (run / "trial").mkdir(parents=True)
    (run / "tuner.pkl").write_bytes(b"")
    (run / "link").symlink_to(run / "tuner.pkl")  # a link's own mode is 0o777
    check_own(run)
    for path in (run / "tuner.pkl", run / "trial", run):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(InputError, match="all users may write it") as error:
            check_own(run)
        assert str(path) in error.value.message
        path.chmod(mode)
    check_own(run)


def test_what_belongs_to_others_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    if tmp_path.stat().st_uid == 0:  # root's files are trusted by all
        check_own(tmp_path)
        os.chown(tmp_path, 12345, -1)
    with pytest.raises(InputError, match="not your own"):
        check_own(tmp_path)
