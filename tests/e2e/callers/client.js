// Calls a service as a backend in Node would, and prints what came back as JSON.
// Usage: node client.js COMMAND ADDRESS IMAGE [PHOTO]; COMMAND is unary, stream, error or retry.
// IMAGE is listing_vision.binpb.
const fs = require("fs");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");

const [command, address, image, photo] = process.argv.slice(2);
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "listing.vision.v1.ListingVisionService" }],
      retryPolicy: {
        maxAttempts: 3,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"],
      },
    },
  ],
};
// The image has google.rpc.Status; these are its details, which the contract does not import.
const DETAILS = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message FieldViolation { string field = 1; string description = 2; string reason = 3; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
`).root;

function readDetails(serializedStatus) {
  const details = {};
  for (const any of DETAILS.lookupType("google.rpc.Status").decode(serializedStatus).details) {
    const name = any.typeUrl.split("/").pop();
    const type = DETAILS.lookup(name);
    if (type) details[name.split(".").pop()] = type.toObject(type.decode(any.value), { longs: Number });
  }
  return details;
}

function describe(error) {
  const [serialized] = error.metadata.get("grpc-status-details-bin");
  return { code: grpc.status[error.code], details: serialized ? readDetails(serialized) : {} };
}

const options = { enums: String, longs: Number, defaults: true, oneofs: true };
const definition = protoLoader.loadFileDescriptorSetFromBuffer(fs.readFileSync(image), options);
const { ListingVisionService } = grpc.loadPackageDefinition(definition).listing.vision.v1;
const client = new ListingVisionService(address, grpc.credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  "grpc.max_receive_message_length": 128 << 20,
  // Larger requests are not retried; the default is 1 MiB.
  "grpc.per_rpc_retry_buffer_size": 128 << 20,
});

function finish(result) {
  console.log(JSON.stringify(result));
  client.close();
}

function classify(photos) {
  const request = { listing_id: "a", photos: photos.map((content) => ({ content })), language_code: "ja" };
  client.ClassifyListing(request, { deadline: Date.now() + 20000 }, (error, response) => {
    finish(error ? describe(error) : response);
  });
}

function classifyStream(photos) {
  const results = {};
  const call = client.ClassifyListings();
  call.on("data", ({ sequence, response, error }) => {
    results[sequence] = response ? response.listing_id : `${error.code}`;
  });
  call.on("error", (error) => finish(describe(error)));
  call.on("end", () => finish(results));
  photos.forEach((content, sequence) => {
    call.write({ sequence, request: { listing_id: `listing-${sequence}`, photos: [{ content }] } });
  });
  call.end();
}

const content = photo && fs.readFileSync(photo);
if (command === "unary") classify([content]);
else if (command === "stream") classifyStream([content, Buffer.from("no photo"), content]);
else if (command === "error") classify([Buffer.from(""), Buffer.from("no photo")]);
else if (command === "retry") classify([Buffer.alloc(3 << 20)]);
