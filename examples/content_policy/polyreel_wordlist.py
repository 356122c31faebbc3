"""A content policy for Polyreel: refuses prompts with certain words, and videos that are one flat colour.

The words stand in the file that WORDLIST names, one a line. The look at the frames is where a classifier would go.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from polyreel.policy import ALLOWED, Verdict, refuse
from polyreel.request import VideoRequest


class WordList:
    """The policy; made once in each process, called in threads."""

    timeout_s = 5.0  # for one check; what takes longer is not let through
    num_frames = 8  # of each video, spread evenly, the first and the last among them

    def __init__(self) -> None:
        listed = os.environ.get("WORDLIST")
        lines = Path(listed).read_text("utf-8").splitlines() if listed else []
        self.words = {line.strip().lower() for line in lines if line.strip()}

    def check_request(self, request: VideoRequest, owner: str) -> Verdict:
        """Look at the prompts; the negative prompt says what not to show, so it may hold any word."""
        used = {word for span in request.prompts for word in re.findall(r"\w+", span.prompt.lower())}
        return refuse("The prompt has a word that is not allowed here.") if used & self.words else ALLOWED

    def check_frames(self, frames: np.ndarray, request: VideoRequest, owner: str) -> Verdict:
        """Look at frames: uint8 of shape (n, height, width, 3)."""
        return refuse("The video shows nothing.") if int(frames.max()) == int(frames.min()) else ALLOWED
