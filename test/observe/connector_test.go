//go:build linux

package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// prefix begins the names of the metrics.
const prefix = "pyairtable_outbox_"

// connector is one instance of "outbox-cdc run". It can be started again after it has ended.
type connector struct {
	t      testing.TB
	config string // file
	addr   string // of its HTTP server
	log    string // file
	child  *process.Child
}

// newConnector makes an instance with an address of its own. It is not started.
func newConnector(t testing.TB, config map[string]any) *connector {
	t.Helper()
	port, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := &connector{
		t: t, addr: process.Loopback(port), config: filepath.Join(dir, "outbox.yaml"), log: filepath.Join(dir, "log"),
	}
	c.configure(config)
	t.Cleanup(func() {
		c.kill()
		if t.Failed() && c.child != nil {
			t.Logf("the end of the log of %s:\n%s", c.addr, c.child.Log())
		}
	})
	return c
}

// start starts it and returns at once.
func (c *connector) start() {
	c.t.Helper()
	child, err := process.Start(c.log, build(c.t), "run", "--config", c.config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.child = child
}

// stop lets it end in good order.
func (c *connector) stop() {
	c.t.Helper()
	if err := c.child.Stop(context.Background()); err != nil {
		c.t.Fatal(err)
	}
}

// kill ends it as kill -9 does, if it runs.
func (c *connector) kill() {
	if c.child != nil {
		c.child.Kill()
	}
}

// reload has it read its configuration again.
func (c *connector) reload() {
	c.t.Helper()
	if err := c.child.Cmd.Process.Signal(syscall.SIGHUP); err != nil {
		c.t.Fatal(err)
	}
}

// command runs another command of the binary, and returns what it printed.
func (c *connector) command(line string) string {
	c.t.Helper()
	binary := build(c.t) // the first build may take longer than any command
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(strings.Fields(line), "--config", c.config)...)
	text, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", line, err, text)
	}
	return string(text)
}

// client keeps no connection: what is at its other end is ended all the time.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}

func (c *connector) get(path string) (body []byte, status int, err error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+c.addr+path, nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return body, resp.StatusCode, err
}

// scrape returns the values of all series, by name and labels as they stand on the page.
func (c *connector) scrape() (map[string]float64, error) {
	body, status, err := c.get("/metrics")
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("/metrics answers %d: %s", status, body)
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || at < 0 {
			continue
		}
		if values[line[:at]], err = strconv.ParseFloat(line[at+1:], 64); err != nil {
			return nil, fmt.Errorf("/metrics: %s: %w", line, err)
		}
	}
	return values, nil
}

// firstScrape starts the connector and returns what its first page says.
func (c *connector) firstScrape() (first map[string]float64) {
	c.t.Helper()
	c.start()
	eventually(c.t, 20*time.Second, "a first scrape", func() (err error) {
		first, err = c.scrape()
		return errors.Join(err, c.ended())
	})
	return first
}

func (c *connector) ended() error {
	select {
	case <-c.child.Done:
		c.t.Fatalf("the connector has ended: %s", c.child.Log())
	default:
	}
	return nil
}

// ready waits until everything is ok in this role.
func (c *connector) ready(role string) {
	c.t.Helper()
	eventually(c.t, 30*time.Second, "ready as "+role, func() error {
		_ = c.ended() // it does not return then
		body, _, err := c.get("/readyz")
		if err != nil {
			return err
		}
		var health struct{ Status, Role string }
		if err := json.Unmarshal(body, &health); err != nil {
			return err
		}
		if health.Status != "ok" || health.Role != role {
			return fmt.Errorf("/readyz: %s", body)
		}
		return nil
	})
}
