// Opens an exported folder with transformers.js and prints ids and embeddings as JSON.
// Arguments: the module of transformers.js, the folder, "clip" or "siglip", the texts as JSON, pixels as JSON, dtypes.
import { basename, dirname } from "node:path";

const [module, folder, kind, texts, pixels, ...dtypes] = process.argv.slice(2);
const js = await import(module);
js.env.allowRemoteModels = false;
js.env.localModelPath = dirname(folder);
const name = basename(folder);

const TextModel = kind === "siglip" ? js.SiglipTextModel : js.CLIPTextModelWithProjection;
const VisionModel = kind === "siglip" ? js.SiglipVisionModel : js.CLIPVisionModelWithProjection;
const rows = (tensor) => tensor.tolist().map((row) => row.map(Number));

const tokenizer = await js.AutoTokenizer.from_pretrained(name);
const processor = await js.AutoProcessor.from_pretrained(name);
const padding = kind === "siglip" ? "max_length" : true;
const words = tokenizer(JSON.parse(texts), { padding, truncation: true });
const { shape, data } = JSON.parse(pixels);
const images = { pixel_values: new js.Tensor("float32", Float32Array.from(data), shape) };
const grey = new js.RawImage(new Uint8ClampedArray(3 * 20 * 30).fill(128), 30, 20, 3);
const result = { ids: rows(words.input_ids), grey: (await processor(grey)).pixel_values.dims, embeddings: {} };
for (const dtype of dtypes) {
  const text = await TextModel.from_pretrained(name, { dtype });
  const vision = await VisionModel.from_pretrained(name, { dtype });
  const [textOutput, visionOutput] = [await text(words), await vision(images)];
  result.embeddings[dtype] = {
    text: rows(textOutput.text_embeds ?? textOutput.pooler_output),
    image: rows(visionOutput.image_embeds ?? visionOutput.pooler_output),
  };
}
console.log(JSON.stringify(result));
