package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// maxAnswer is how much of an answer is read, so that its connection can be used again.
const maxAnswer = 64 << 10

// client posts spans by OTLP over HTTP. It is an otlptrace.Client. OpenTelemetry's own clients link gRPC, also the one for HTTP, and with it
// 14 MB, a half of the binary; and they put into their errors what the collector answers, which may quote the headers.
type client struct {
	url     string
	headers map[string]string
	http    *http.Client
}

func newClient(c *Config) *client {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: c.TLS, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: exportTimeout,
	}
	return &client{url: c.Endpoint, headers: c.Headers, http: &http.Client{
		Transport: transport,
		// The headers may be secrets, and another host is not to have them.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Start does nothing: the first export makes the connection.
func (*client) Start(context.Context) error { return nil }

// Stop closes the connections.
func (c *client) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces posts spans once. What the collector does not take is lost: others wait behind it.
func (c *client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// On the wire this is the same message as a request to export.
	message, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return fmt.Errorf("encode spans: %w", err)
	}
	var body bytes.Buffer
	compressed := gzip.NewWriter(&body)
	_, err = compressed.Write(message)
	if err = errors.Join(err, compressed.Close()); err != nil {
		return fmt.Errorf("compress spans: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, &body)
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	for name, value := range c.headers {
		request.Header.Set(name, value)
	}
	request.Header.Set("Content-Type", "application/x-protobuf")
	request.Header.Set("Content-Encoding", "gzip")
	request.Header.Set("User-Agent", userAgent)
	answer, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	// What the answer says beside its status, such as that a span was refused, is for the collector's own log.
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer)) // the status is known
	if answer.StatusCode < http.StatusOK || answer.StatusCode >= http.StatusMultipleChoices {
		return statusError(answer.StatusCode)
	}
	return nil
}

// statusError is the status of an answer that is none of success.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("HTTP status %d", int(s)) }
