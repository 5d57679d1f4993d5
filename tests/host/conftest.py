"""Host tests: ComfyUI collects garbage at every run, and what it and PyTorch have loaded makes each collection take half a second."""
import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays():
    """Collections pass over what is there when a module of tests begins, beside what the fixture `host` has seen to."""
    gc.collect()
    gc.freeze()
