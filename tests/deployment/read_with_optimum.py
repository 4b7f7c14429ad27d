"""Open an exported folder with optimum-onnx and transformers, and print similarities as JSON.

A program of its own, because optimum-onnx needs an older transformers. Arguments: the folder, texts and pixels as JSON.
"""

import json
import sys

import numpy as np
from optimum.onnxruntime import ORTModelForZeroShotImageClassification
from transformers import AutoTokenizer

folder, texts, pixels = sys.argv[1:]
model = ORTModelForZeroShotImageClassification.from_pretrained(folder, local_files_only=True)
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
words = tokenizer(json.loads(texts), padding=True, truncation=True, return_tensors="np")
images = json.loads(pixels)
array = np.array(images["data"], np.float32).reshape(images["shape"])
output = model(**words, pixel_values=array)
print(json.dumps({"inputs": sorted(words), "logits": output.logits_per_image.tolist()}))
