// Calls a service as a backend in Go would, and prints what came back as JSON.
// Usage: client COMMAND ADDRESS [PHOTO]; COMMAND is unary, stream, error or retry.
package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "shop/visionv1"
)

const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "listing.vision.v1.ListingVisionService"}],
    "retryPolicy": {
      "maxAttempts": 3,
      "initialBackoff": "0.1s",
      "maxBackoff": "1s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
    }
  }],
  "retryThrottling": {"maxTokens": 200, "tokenRatio": 0.1}
}`

func finish(result interface{}, err error) {
	if err != nil {
		failed := status.Convert(err)
		described := map[string]interface{}{"code": failed.Code().String()}
		for _, detail := range failed.Details() {
			switch one := detail.(type) {
			case *errdetails.ErrorInfo:
				described["reason"], described["metadata"] = one.Reason, one.Metadata
			case *errdetails.BadRequest:
				fields := []string{}
				for _, violation := range one.FieldViolations {
					fields = append(fields, violation.Field)
				}
				described["fields"] = fields
			}
		}
		result = described
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

func listing(id string, contents ...[]byte) *pb.ClassifyListingRequest {
	request := &pb.ClassifyListingRequest{ListingId: id, LanguageCode: "ja"}
	for _, content := range contents {
		request.Photos = append(request.Photos, &pb.Photo{Source: &pb.Photo_Content{Content: content}})
	}
	return request
}

func classifyStream(ctx context.Context, client pb.ListingVisionServiceClient, contents ...[]byte) (map[string]string, error) {
	stream, err := client.ClassifyListings(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		for number, content := range contents {
			request := listing("listing-"+strconv.Itoa(number), content)
			if stream.Send(&pb.ClassifyListingsRequest{Sequence: int64(number), Request: request}) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	results := map[string]string{}
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return results, nil
		}
		if err != nil {
			return nil, err
		}
		result := response.GetResponse().GetListingId()
		if failed := response.GetError(); failed != nil {
			result = strconv.Itoa(int(failed.Code))
		}
		results[strconv.FormatInt(response.Sequence, 10)] = result
	}
}

func main() {
	command, address := os.Args[1], os.Args[2]
	var photo []byte
	if len(os.Args) > 3 {
		var err error
		if photo, err = os.ReadFile(os.Args[3]); err != nil {
			log.Fatal(err)
		}
	}
	// WithInsecure and Dial: this also compiles with the grpc-go 1.33 of Debian.
	conn, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithDefaultServiceConfig(serviceConfig),
		// Larger requests are not retried; the default is 256 KiB.
		grpc.WithDefaultCallOptions(grpc.MaxRetryRPCBufferSize(128<<20)))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := pb.NewListingVisionServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	switch command {
	case "unary":
		response, err := client.ClassifyListing(ctx, listing("a", photo))
		names := []string{}
		for _, level := range response.GetCategoryPath() {
			names = append(names, level.Name)
		}
		finish(map[string]interface{}{"listingId": response.GetListingId(), "names": names}, err)
	case "stream":
		results, err := classifyStream(ctx, client, photo, []byte("no photo"), photo)
		finish(results, err)
	case "error":
		_, err := client.ClassifyListing(ctx, listing("a", []byte{}, []byte("no photo")))
		finish(nil, err)
	case "retry":
		response, err := client.ClassifyListing(ctx, listing("a", make([]byte, 3<<20)))
		finish(map[string]string{"listingId": response.GetListingId()}, err)
	}
}
