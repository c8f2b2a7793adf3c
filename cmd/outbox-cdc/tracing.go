package main

import (
	"log/slog"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/service"
	"github.com/pyairtable-compose/outbox-cdc/tracing/otlp"
)

// startTracing makes what sends spans to where the configuration says. Without an endpoint it makes nothing.
func startTracing(c config.Tracing, logger *slog.Logger) (*otlp.Tracing, error) {
	if c.Endpoint == "" {
		return &otlp.Tracing{}, nil
	}
	secure, err := service.TracingTLS(c)
	if err != nil {
		return nil, err
	}
	headers := make(map[string]string, len(c.Headers))
	for name, value := range c.Headers {
		headers[name] = string(value)
	}
	logger.Info("spans are sent", "endpoint", c.Endpoint, "sample_ratio", c.SampleRatio)
	return otlp.Start(otlp.Config{
		Endpoint: c.TracesURL(), Shown: c.Endpoint.String(), Headers: headers, TLS: secure,
		SampleRatio: c.SampleRatio, Resource: c.Resource, Logger: logger,
	})
}
