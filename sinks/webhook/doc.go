// Package webhook is the sink that posts events to an HTTP receiver, one request an event, signed as Standard Webhooks
// (standardwebhooks.com) says, so that every receiver's own library can verify them.
//
// One sink is one destination: routes may choose the path, never the host. Messages of different aggregates go out at
// the same time, over at most Config.Connections connections that all lanes share; those of one aggregate one after
// the other, and none after one that was not accepted. Aggregates that were accepted lately go first, and a Deliver begins with
// its share of the connections: a receiver that never answers some messages does not keep the others waiting.
//
// Only the status of an answer counts. Its body is read, to use the connection again, and never looked at or quoted:
// it may hold what it was sent. Redirects are not followed.
//
//   - 2xx: accepted.
//   - 400, 413, 422: this message, never (sinks.ErrPermanent).
//   - 401, 403, 404, 407, 410, 429, 502, 503, 504, and no answer at all: the destination is away (sinks.ErrUnavailable).
//   - all others, redirects among them: not this time.
//
// A request whose connection ends before an answer is sent once more by net/http, when the connection had been used
// before: most often the receiver had just closed it for idleness. It may have been accepted twice then, with the same
// id, on which receivers deduplicate.
//
// Files: config.go; sink.go what lanes share; delivery.go one Deliver; request.go bytes and signatures; verdict.go
// answers; known.go who goes first; guard.go connections, and which addresses are refused.
package webhook
