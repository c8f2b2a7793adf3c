package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

func TestGuard(t *testing.T) {
	t.Parallel()
	for address, denied := range map[string]bool{
		"8.8.8.8": false, "1.1.1.1": false, "9.255.255.255": false, "11.0.0.0": false, "100.63.255.255": false, "100.128.0.0": false,
		"126.255.255.255": false, "128.0.0.0": false, "169.253.255.255": false, "169.255.0.0": false, "172.15.255.255": false,
		"172.32.0.0": false, "192.167.255.255": false, "192.169.0.0": false, "198.17.255.255": false, "198.20.0.0": false, "223.255.255.255": false,
		"0.0.0.0": true, "0.255.255.255": true, "10.0.0.0": true, "10.255.255.255": true, "100.64.0.0": true, "100.100.100.200": true,
		"100.127.255.255": true, "127.0.0.1": true, "127.255.255.255": true, "169.254.0.0": true, "169.254.169.254": true, "169.254.170.2": true,
		"172.16.0.0": true, "172.31.255.255": true, "192.0.0.192": true, "192.168.0.0": true, "192.168.255.255": true, "192.0.2.1": true,
		"192.88.99.1": true, "198.18.0.1": true, "198.19.255.255": true, "198.51.100.7": true, "203.0.113.7": true,
		"224.0.0.1": true, "239.255.255.255": true, "240.0.0.1": true, "255.255.255.255": true,

		"2606:4700:4700::1111": false, "2a00:1450:4001:81b::200e": false, "2001:4860:4860::8888": false, "2400::": false,
		"::": true, "::1": true, "::2": true, "::127.0.0.1": true, "::8.8.8.8": true,
		"::ffff:127.0.0.1": true, "::ffff:10.0.0.1": true, "::ffff:8.8.8.8": true, "::ffff:0:8.8.8.8": true,
		"64:ff9b::7f00:1": true, "64:ff9b::808:808": true, "64:ff9b:1::1": true, "100::1": true,
		"2001::1": true, "2001:db8::1": true, "2002:7f00:1::": true, "3fff::1": true, "4000::1": true, "5f00::1": true,
		"fc00::1": true, "fd00:ec2::254": true, "fd12:3456::1": true, "fe80::1": true, "fe80::1%eth0": true, "fec0::1": true,
		"ff02::1": true, "ff0e::1": true, "2606:4700:4700::1111%eth0": true,
	} {
		a := netip.MustParseAddr(address)
		network := "tcp6"
		if a.Is4() {
			network = "tcp4"
		}
		if err := guard(network, netip.AddrPortFrom(a, 443).String(), nil); (err != nil) != denied {
			t.Errorf("%s: want denied %t, got %v", address, denied, err)
		}
	}
	for _, c := range [][2]string{{"tcp4", "no address"}, {"tcp4", ""}, {"unix", "/run/x"}, {"udp4", "8.8.8.8:53"}} {
		if guard(c[0], c[1], nil) == nil {
			t.Errorf("%s %q passed", c[0], c[1])
		}
	}
}

// TestGuardIsAsked: nothing is sent to a name that resolves to this host, and the error says what to do.
func TestGuardIsAsked(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var reached atomic.Int32
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			reached.Add(1)
			conn.Close()
		}
	}()
	port := listener.Addr().(*net.TCPAddr).Port
	for _, host := range []string{"localhost", "2130706433", "0x7f000001", "127.1", "0177.0.0.1"} {
		s := newSink(t, Config{URL: fmt.Sprintf("https://%s:%d/", host, port), AllowHosts: []string{"127.0.0.1"}})
		errs := deliver(t, s, batchOf("a/1"))
		if len(errs) != 1 || !errors.Is(errs[0], sinks.ErrUnavailable) {
			t.Errorf("%s: %v", host, errs)
			continue
		}
		if host == "localhost" && !strings.Contains(errs[0].Error(), "allow_hosts") {
			t.Errorf("the error names no remedy: %v", errs[0])
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
	s := newSink(t, Config{URL: fmt.Sprintf("https://localhost:%d/", port), AllowHosts: []string{"localhost"}})
	expectErrors(t, deliver(t, s, batchOf("a/1")), sinks.ErrUnavailable)
	if reached.Load() == 0 {
		t.Error("an allowed host was not reached")
	}
}

// TestNoProxy: a proxy from the environment is not used, because the guard would not see where it connects to.
func TestNoProxy(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	s := newSink(t, Config{URL: "https://h"})
	if s.transport.Proxy != nil {
		t.Error("the transport has a proxy")
	}
}
