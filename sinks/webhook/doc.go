// Package webhook is the sink that posts events to an HTTP receiver, one request for each event. Requests are signed as
// Standard Webhooks (standardwebhooks.com) says, so that a receiver can verify them with a library.
//
// One sink is one destination: routes may choose the path, but never the host. Messages of different aggregates are
// sent at the same time, over at most Config.Connections connections, which all lanes share. Messages of one aggregate
// are sent one after the other, and none after one that was not accepted. Two rules keep messages that the receiver
// never answers from making the others wait: aggregates of which a message was accepted lately go first, and a Deliver
// begins with only a share of the connections.
//
// Only the status of an answer counts; docs/sinks.md has the table. Redirects are not followed. The beginning of a refusal's
// body goes with the error (sinks.WithAnswer), without the sink's secrets and the payload, and is never evaluated.
//
// Where topics name different URLs (Config.Topics), a URL that is missing or forbidden, or that does not answer while others
// do, is away by itself (sinks.ErrTopicUnavailable). It is asked again at growing distances, by one message at a time.
//
// If a connection that was used before ends without an answer, net/http sends the request once more. Usually the
// receiver has just closed the connection because it was idle. Otherwise the message may be accepted twice, with the
// same id, by which receivers deduplicate.
//
// Files: config.go: the configuration. sink.go: what the lanes share. delivery.go: one call of Deliver. request.go: a
// request and its signature. verdict.go: what an answer means. answer.go: what is kept of its body. urls.go: which
// URLs are away. known.go: which aggregates go first. guard.go: connections, and which addresses are refused. path.go:
// which paths routes may choose. check.go: whether the receiver can be reached, without a request.
package webhook
