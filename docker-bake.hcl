# docker buildx bake                                  all five images
# docker buildx bake gateway --set '*.platform=linux/amd64' --push
# REPOSITORY=registry.example/team/ VERSION=0.2.0 docker buildx bake --push

variable "VERSION" {
  default = "0.1.0"
}

# Prefix of the images' names, with a trailing slash.
variable "REPOSITORY" {
  default = ""
}

variable "PYTHON_IMAGE" {
  default = "python:3.11.15-slim-bookworm"
}

variable "TRITON_IMAGE" {
  default = "tritonserver:26.11-py3"
}

group "default" {
  targets = ["gateway", "triton", "triton-torch", "training", "backfill"]
}

target "all" {
  context    = "."
  dockerfile = "Dockerfile.gpu"
  platforms  = ["linux/amd64"]
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE
    TRITON_IMAGE = TRITON_IMAGE
  }
  labels = {
    "org.opencontainers.image.title"    = "listing-vision"
    "org.opencontainers.image.version"  = VERSION
    "org.opencontainers.image.licenses" = "Apache-2.0"
  }
}

target "gateway" {
  inherits = ["all"]
  target   = "gateway"
  tags     = ["${REPOSITORY}listing-vision-gateway:${VERSION}"]
}

target "triton" {
  inherits = ["all"]
  target   = "triton"
  tags     = ["${REPOSITORY}listing-vision-triton:${VERSION}"]
}

target "triton-torch" {
  inherits = ["all"]
  target   = "triton-torch"
  tags     = ["${REPOSITORY}listing-vision-triton-torch:${VERSION}"]
}

target "training" {
  inherits = ["all"]
  target   = "training"
  tags     = ["${REPOSITORY}listing-vision-training:${VERSION}"]
}

target "backfill" {
  inherits = ["all"]
  target   = "backfill"
  tags     = ["${REPOSITORY}listing-vision-backfill:${VERSION}"]
}
