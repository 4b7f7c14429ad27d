"""Search with rclip's own model in an exported folder, and print its embeddings as JSON.

Arguments: the texts as JSON, and the path of an image. RCLIP_DATADIR is the folder.
"""

import json
import sys

from PIL import Image
from rclip.model import Model

texts, image = sys.argv[1:]
model = Model()
model.ensure_downloaded()
print(
    json.dumps(
        {
            "texts": model.compute_text_features(json.loads(texts)).tolist(),
            "images": model.compute_image_features([Image.open(image)]).tolist(),
        }
    )
)
