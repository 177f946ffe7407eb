"""The S3-compatible gateway: requests as S3 clients sign them, answers as they expect them."""
