package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// PrometheusOptions say how to start a Prometheus.
type PrometheusOptions struct {
	// Targets are the addresses, host:port, that are scraped, by job.
	Targets map[string][]string
	// Interval is how often they are scraped, and rules evaluated; 0 is a second.
	Interval time.Duration
	// Rules are the paths of files with rules.
	Rules []string
	// Args are further flags, such as --enable-feature=native-histograms.
	Args []string
	// Dir is where its data directory is made; "" is the system's directory for temporary files.
	Dir string
}

// Prometheus is a server that scrapes, evaluates rules and answers queries. Its methods are safe for concurrent use, except Close.
type Prometheus struct {
	instance instance
	addr     string
	client   *http.Client
}

const prometheusIsMissing = "is missing; install it (Debian: apt-get install prometheus; macOS: brew install prometheus)"

// StartPrometheus starts the prometheus that is installed. It answers queries when this returns; it need not have scraped yet.
func StartPrometheus(ctx context.Context, o PrometheusOptions) (*Prometheus, error) {
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		return nil, errors.New("prometheus " + prometheusIsMissing)
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory(o.Dir, "prometheus", nil)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir.path, "prometheus.yml")
	p := &Prometheus{addr: local(port), client: &http.Client{Transport: &http.Transport{}}, instance: &process{
		path: binary,
		args: append([]string{
			"--config.file=" + file,
			"--storage.tsdb.path=" + filepath.Join(dir.path, "data"),
			"--web.listen-address=" + local(port),
		}, o.Args...),
		logFile: filepath.Join(dir.path, "prometheus.log"),
		signal:  syscall.SIGKILL,
		dir:     dir,
	}}
	config, err := o.config()
	if err == nil {
		err = os.WriteFile(file, config, 0o600)
	}
	if err != nil {
		return nil, joinRemove(err, p.instance)
	}
	if err := p.instance.Start(ctx); err != nil {
		return nil, joinRemove(fmt.Errorf("start Prometheus: %w", err), p.instance)
	}
	err = ready(ctx, "Prometheus", p.instance, func(ctx context.Context) error {
		_, err := p.get(ctx, "/-/ready")
		return err
	})
	if err != nil {
		return nil, joinRemove(err, p.instance)
	}
	return p, nil
}

// config returns the configuration, which is JSON, and so YAML.
func (o PrometheusOptions) config() ([]byte, error) {
	type targets struct {
		Targets []string `json:"targets"`
	}
	type scrape struct {
		Job     string    `json:"job_name"`
		Targets []targets `json:"static_configs"`
	}
	var c struct {
		Global struct {
			Scrape  string `json:"scrape_interval"`
			Timeout string `json:"scrape_timeout"`
			Rules   string `json:"evaluation_interval"`
		} `json:"global"`
		Rules   []string `json:"rule_files"`
		Scrapes []scrape `json:"scrape_configs"`
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	interval := fmt.Sprintf("%dms", o.Interval.Milliseconds())
	c.Global.Scrape, c.Global.Timeout, c.Global.Rules = interval, interval, interval
	for _, rules := range o.Rules {
		path, err := filepath.Abs(rules)
		if err != nil {
			return nil, err
		}
		c.Rules = append(c.Rules, path)
	}
	for job, addresses := range o.Targets {
		c.Scrapes = append(c.Scrapes, scrape{job, []targets{{addresses}}})
	}
	return json.Marshal(c)
}

// Addr is its host:port.
func (p *Prometheus) Addr() string { return p.addr }

// Log is the end of what it printed.
func (p *Prometheus) Log() string { return p.instance.Log() }

// Close ends it at once and removes its data.
func (p *Prometheus) Close() error {
	p.client.CloseIdleConnections()
	return p.instance.Remove()
}

// get returns the answer to a GET, or an error that says what it answered instead of 200.
func (p *Prometheus) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("Prometheus answers %s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// Promtool runs promtool, which comes with Prometheus, and returns what it printed. stdin may be nil. It is an error when promtool finds
// something.
func Promtool(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	binary, err := exec.LookPath("promtool")
	if err != nil {
		return "", errors.New("promtool " + prometheusIsMissing)
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("promtool %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
