package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

const readyTimeout = time.Minute

// connector is outbox-cdc, as a process of its own, with an ordinary configuration.
type connector struct {
	config, log string // paths
	http        string // where it listens
	program     *servers.Program
	// killed and again are requests to run: to kill the process, and to start it again after that.
	killed, again chan struct{}
}

// newConnector writes the configuration. The process runs command with the path of the configuration as its last argument.
func newConnector(dir string, command []string, configuration func(listen string) string) (*connector, error) {
	port, err := servers.FreePort()
	if err != nil {
		return nil, err
	}
	c := &connector{
		config: filepath.Join(dir, "outbox.yaml"), log: filepath.Join(dir, "connector.log"), http: fmt.Sprintf("127.0.0.1:%d", port),
		killed: make(chan struct{}), again: make(chan struct{}),
	}
	c.program = servers.NewProgram(dir, c.log, command[0], append(command[1:], c.config)...)
	return c, os.WriteFile(c.config, []byte(configuration(c.http)), 0o600)
}

// run keeps the process running until ctx ends, and then stops it. When work has ended, that means to kill it. An end that
// kill did not ask for is an error.
func (c *connector) run(ctx, work context.Context) error {
	for ctx.Err() == nil {
		if err := c.program.Start(ctx); err != nil {
			return fmt.Errorf("start the connector: %w", err)
		}
		select {
		case <-c.program.Done():
			return fmt.Errorf("the connector has ended. The end of its log:\n%s", c.program.Log())
		case <-ctx.Done():
			return c.stop(work)
		case <-c.killed:
		}
		c.program.Kill()
		select {
		case <-c.again:
		case <-ctx.Done():
		}
	}
	return nil
}

func (c *connector) stop(work context.Context) error {
	ctx, cancel := context.WithTimeoutCause(work, connectorStopTimeout, errors.New("it took too long"))
	defer cancel()
	if err := c.program.Stop(ctx); err != nil {
		c.program.Kill()
		return fmt.Errorf("stop the connector: %w. The end of its log:\n%s", err, c.program.Log())
	}
	return nil
}

// kill kills the process. It returns before the process has ended.
func (c *connector) kill(ctx context.Context) error { return request(ctx, c.killed) }

// restart starts the process again.
func (c *connector) restart(ctx context.Context) error { return request(ctx, c.again) }

func request(ctx context.Context, c chan<- struct{}) error {
	select {
	case c <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// awaitReady waits until the connector and all of its sinks are ok.
func (c *connector) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("/readyz of the connector does not say ok"))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.http+"/readyz?strict", nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// configuration has what an ordinary one has, and leaves everything else at its default.
func (d *demo) configuration(listen string) string {
	text := fmt.Sprintf(`# Made by outbox-demo. "outbox-cdc config example" explains every key.
name: demo
source:
  dsn: %q
sinks:
  - name: events
    type: kafka
    brokers: [%q]
    topic: outbox.event.{aggregate_type}
  - name: stream
    type: redis_stream
    url: redis://%s
  - name: partner
    type: webhook
    url: %s
    secret: %s
    allow_hosts: [127.0.0.1]
http:
  listen: %s
`, d.dsn(), d.broker.addr, d.others.redis.Addr(), d.others.url, d.others.secret, listen)
	if len(d.Chaos) > 0 {
		text += chaosConfiguration
	}
	return text
}
