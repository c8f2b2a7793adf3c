//go:build linux

package ship

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha1" // apk has such checksums
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestRPM installs the rpm of dist in a root of its own, upgrades and removes it.
func TestRPM(t *testing.T) {
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Skip("it needs rpm: apt-get install rpm")
	}
	r := newRoot(t, "rpm-life")
	r.put(artifact(t, "*.x86_64.rpm"), "outbox.rpm")
	r.run()
}

// apkPart is one of the tar archives of an apk, each of which is a gzip stream of its own.
type apkPart struct {
	compressed []byte
	files      map[string]apkFile
}

type apkFile struct {
	header  *tar.Header
	content []byte
}

// readAPK reads the parts of an apk that is not signed: what it says of itself, with the scripts, and the files.
func readAPK(t *testing.T, name string) (control, data apkPart) {
	t.Helper()
	all, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var parts []apkPart
	rest := bytes.NewReader(all)
	for rest.Len() > 0 {
		begin := len(all) - rest.Len()
		z, err := gzip.NewReader(rest) // a ByteReader, so that it reads no byte of the next stream
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false)
		part := apkPart{files: map[string]apkFile{}}
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			part.files[strings.TrimSuffix(h.Name, "/")] = apkFile{h, content}
		}
		if _, err := io.Copy(io.Discard, z); err != nil {
			t.Fatal(err)
		}
		part.compressed = all[begin : len(all)-rest.Len()]
		parts = append(parts, part)
	}
	if len(parts) != 2 {
		t.Fatalf("%s has %d parts", name, len(parts))
	}
	return parts[0], parts[1]
}

// TestAPK looks into the apk of dist. Debian has no apk, so nothing installs it here.
func TestAPK(t *testing.T) {
	control, data := readAPK(t, artifact(t, "*_x86_64.apk"))
	about := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(control.files[".PKGINFO"].content)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), " = ")
		about[key] = value
	}
	hash := sha256.Sum256(data.compressed)
	if about["pkgname"] != "outbox-cdc" || about["license"] != "MIT" || about["depend"] != "shadow" || about["datahash"] != hex.EncodeToString(hash[:]) {
		t.Errorf(".PKGINFO: %v", about)
	}
	scripts := map[string]string{
		".pre-install": "preinstall", ".post-install": "postinstall", ".post-upgrade": "postinstall", ".pre-deinstall": "preremove", ".post-deinstall": "postremove",
	}
	for name, source := range scripts {
		if f, ok := control.files[name]; !ok || string(f.content) != readFile(t, "deploy/package/"+source+".sh") || f.header.Mode != 0o755 {
			t.Errorf("%s is not deploy/package/%s.sh", name, source)
		}
	}

	// It has the files of the deb, but for completions of zsh.
	var got []string
	for name, f := range data.files {
		if f.header.Typeflag == tar.TypeReg {
			got = append(got, "/"+name)
			sum := sha1.Sum(f.content)
			if f.header.PAXRecords["APK-TOOLS.checksum.SHA1"] != hex.EncodeToString(sum[:]) {
				t.Errorf("%s has another checksum", name)
			}
		}
	}
	list, err := exec.CommandContext(t.Context(), "dpkg-deb", "-c", artifact(t, "*_amd64.deb")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile(`(?m)^-\S+ .* \.?(/\S+)$`).FindAllStringSubmatch(string(list), -1) {
		if !strings.Contains(m[1], "/zsh/") {
			want = append(want, m[1])
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(got) < 40 {
		t.Errorf("the apk has\n%q, and the deb\n%q", got, want)
	}
	if c := data.files["etc/outbox-cdc/outbox.yaml"].header; c == nil || c.Mode != 0o640 || c.Uname != "root" || c.Gname != "outbox-cdc" {
		t.Errorf("the configuration: %+v", c)
	}
	if c := data.files["etc/outbox-cdc"].header; c == nil || c.Mode != 0o750 || c.Gname != "outbox-cdc" {
		t.Errorf("its directory: %+v", c)
	}
}
