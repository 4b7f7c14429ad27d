"""Dynamic int8 of the two towers for onnxruntime, checked beside float32."""
