// Package webhook is the sink that posts events to an HTTP receiver, one request for each event. Requests are signed as
// Standard Webhooks (standardwebhooks.com) says, so that a receiver can verify them with a library.
//
// One sink is one destination: routes may choose the path, but never the host. Messages of different aggregates are
// sent at the same time, over at most Config.Connections connections, which all lanes share. Messages of one aggregate
// are sent one after the other, and none after one that was not accepted. Two rules keep messages that the receiver
// never answers from making the others wait: aggregates of which a message was accepted lately go first, and a Deliver
// begins with only a share of the connections.
//
// Only the status of an answer counts. Its body is read so that the connection can be used again, but it is never
// evaluated or quoted, because it may contain what was sent. Redirects are not followed.
//
//   - 2xx: accepted.
//   - 400, 413, 422: this message will never be accepted (sinks.ErrPermanent).
//   - 401, 403, 404, 407, 410, 429, 502, 503, 504, and no answer at all: the destination is away (sinks.ErrUnavailable).
//   - any other status, redirects included: refused this time.
//
// If a connection that was used before ends without an answer, net/http sends the request once more. Usually the
// receiver has just closed the connection because it was idle. Otherwise the message may be accepted twice, with the
// same id, by which receivers deduplicate.
//
// Files: config.go: the configuration. sink.go: what the lanes share. delivery.go: one call of Deliver. request.go: a
// request and its signature. verdict.go: what an answer means. known.go: which aggregates go first. guard.go:
// connections, and which addresses are refused. path.go: which paths routes may choose.
package webhook
