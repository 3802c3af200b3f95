# make images                                          all five images, by `docker buildx bake`
# make images RELEASE=1 REPOSITORY=registry.example/team/   for others: pushed, and only from bases with a digest

variable "VERSION" {
  default = "0.1.0"
}

# Prefix of the images' names, with a trailing slash.
variable "REPOSITORY" {
  default = ""
}

variable "PYTHON_IMAGE" {
  default = "python:3.12.15-slim-trixie"
}

variable "TRITON_IMAGE" {
  default = "tritonserver:26.11-py3"
}

# sha256:… of the bases, which a release needs; the one place to fill them in. Each is printed by
#   docker buildx imagetools inspect IMAGE --format '{{.Manifest.Digest}}'
variable "PYTHON_DIGEST" {
  default = ""
}

variable "TRITON_DIGEST" {
  default = ""
}

group "default" {
  targets = ["gateway", "triton", "triton-torch", "training", "backfill"]
}

target "all" {
  context    = "."
  dockerfile = "Dockerfile.gpu"
  platforms  = ["linux/amd64"]
  attest     = ["type=provenance,mode=max", "type=sbom"]
  args = {
    PYTHON_IMAGE = PYTHON_DIGEST == "" ? PYTHON_IMAGE : "${PYTHON_IMAGE}@${PYTHON_DIGEST}"
    TRITON_IMAGE = TRITON_DIGEST == "" ? TRITON_IMAGE : "${TRITON_IMAGE}@${TRITON_DIGEST}"
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
