"""ModelsLab v6: `text2video`, `img2video`, `fetch` and `request_count`, with their enterprise and v7 names.

    settings         the section `dialects: modelslab:`
    fields           what every submit has, and its ranges
    text_to_video    a body of text2video to a request
    image_to_video   a body of img2video to a request
    meta             a record to the object that echoes every parameter
    answers          a record to an answer, and to the body of a webhook
    refusals         errors
    routes           the paths

Sources: docs.modelslab.com "Text to Video" (OpenAPI) and the older page of the same endpoint, which differ; "Image to
Video", "Fetch Video", the enterprise pages, "Error Codes" and "Webhooks". What we decided between them, and every
field, is in `docs/compatibility/modelslab.md`.
"""

from __future__ import annotations

from polyreel.catalogue import Catalogue
from server.dialects import Dialect, Example
from server.dialects.modelslab import image_to_video, text_to_video
from server.dialects.modelslab.answers import webhook_body
from server.dialects.modelslab.refusals import render_error
from server.dialects.modelslab.routes import router
from server.dialects.modelslab.settings import ModelsLabSettings, check
from server.snippets import WireCall, Wish


def snippet(wish: Wish, catalogue: Catalogue, settings: ModelsLabSettings) -> WireCall:
    """Say a request in these words: as img2video where it has a picture, else as text2video.

    Raises:
        Unsayable, InvalidRequest: there are no words for it, or it is out of range here.
    """
    if wish.first_frame:
        return image_to_video.snippet(wish, catalogue, settings)
    return text_to_video.snippet(wish, catalogue, settings)


DIALECT = Dialect(
    name="modelslab",
    prefixes=("/api/",),
    router=router,
    render_error=render_error,
    settings=ModelsLabSettings,
    check=check,
    snippet=snippet,
    title="ModelsLab v6",
    about="`text2video` and `img2video` answer with a link, at once or through `fetch`; the key stands in the body.",
    webhook=webhook_body,
    example=Example(
        title="answers with a link to an mp4",
        path="/api/v6/video/text2video",
        headers={"Content-Type": "application/json"},
        body={
            "key": "{key}",
            "prompt": "a red circle moving right on a black background",
            "model_id": "wan2.2",
            "height": 512,
            "width": 512,
            "num_frames": 17,
            "num_inference_steps": 20,
            "guidance_scale": 7,
            "output_type": "mp4",
            "webhook": None,
            "track_id": None,
        },
    ),
)
