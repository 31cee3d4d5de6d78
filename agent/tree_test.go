package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// me owns what a test unpacks, so that it needs no root.
func me() *account {
	return &account{uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
}

func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.Name
		h.Mode, h.Size = 0o755, 0
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpackInto(t *testing.T, dir string, data []byte) error {
	t.Helper()
	where, err := openBeneath(dir, me())
	if err != nil {
		t.Fatal(err)
	}
	defer where.close()
	u := &unpacker{where: where, owner: me(), piece: make([]byte, 1000)}
	return u.unpack(bytes.NewReader(data))
}

func regular(name string) tar.Header   { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
func directory(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
func symbolic(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
}
func hard(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
}

func TestArchivesDoNotLeaveTheirTree(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"dots":                     {regular("../x")},
		"dots inside":              {regular("a/../../x")},
		"absolute":                 {regular("/tmp/x")},
		"through an absolute link": {symbolic("l", "OUTSIDE"), regular("l/x")},
		"through a relative link":  {symbolic("l", ".."), regular("l/x")},
		"through two links":        {symbolic("a", "."), symbolic("b", "a/../.."), regular("b/x")},
		"directory over a link":    {symbolic("l", "OUTSIDE"), directory("l"), regular("l/x")},
		"hard link out":            {hard("h", "../secret")},
		"hard link absolute":       {hard("h", "OUTSIDE/secret")},
		"hard link through a link": {symbolic("l", "OUTSIDE"), hard("h", "l/secret")},
		"endless link":             {symbolic("l", "l"), regular("l/x")},
	} {
		top := t.TempDir()
		outside, inner := filepath.Join(top, "outside"), filepath.Join(top, "inner")
		for _, dir := range []string{outside, inner} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, secret := range []string{filepath.Join(outside, "secret"), filepath.Join(top, "secret")} {
			if err := os.WriteFile(secret, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for i := range entries {
			entries[i].Linkname = strings.ReplaceAll(entries[i].Linkname, "OUTSIDE", outside)
		}
		if err := unpackInto(t, inner, archive(t, entries...)); err == nil {
			t.Errorf("%s: unpacked", name)
		}
		for _, x := range []string{filepath.Join(top, "x"), filepath.Join(outside, "x"), filepath.Join(inner, "h"), "/tmp/x"} {
			if _, err := os.Lstat(x); err == nil {
				t.Errorf("%s: made %s", name, x)
			}
		}
	}
}

func TestArchivesMayUseLinksInside(t *testing.T) {
	dir := t.TempDir()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = unpackInto(t, dir, archive(t, directory("d"), regular("d/f"), symbolic("rel", "d"), regular("rel/g"), symbolic("d/up", "../d"), regular("d/up/h"),
		symbolic("abs", real+"/d"), regular("abs/i"), hard("j", "d/f"), symbolic("d2", "d"), directory("d2"), regular("d2/k")))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"d/f": "d/f", "d/g": "rel/g", "d/h": "d/up/h", "d/i": "abs/i", "j": "d/f", "d/k": "d2/k"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != content {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestBrokenArchives(t *testing.T) {
	whole := archive(t, regular(strings.Repeat("long/", 10)+"f"))
	for name, data := range map[string][]byte{"text": bytes.Repeat([]byte("garbage "), 500), "cut in the content": whole[:514], "cut in the header": whole[:300]} {
		if err := unpackInto(t, t.TempDir(), data); !hasCode(err, "EPROTO") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := unpackInto(t, t.TempDir(), nil); err != nil {
		t.Errorf("an empty stream is an empty archive: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte("not an archive"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		top := t.TempDir()
		inner := filepath.Join(top, "inner")
		if err := os.Mkdir(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = unpackInto(t, inner, data) // any error will do
		if entries, err := os.ReadDir(top); err != nil || len(entries) != 1 {
			t.Errorf("left its tree: %v, %v", entries, err)
		}
	})
}

// makeTree fills a directory with one of everything.
func makeTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	when := time.Unix(1e9, 123456000)
	for _, step := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o750),
		os.WriteFile(filepath.Join(dir, "a/f\xff"), bytes.Repeat([]byte("x"), 700000), 0o640),
		os.Chtimes(filepath.Join(dir, "a/f\xff"), when, when),
		os.Link(filepath.Join(dir, "a/f\xff"), filepath.Join(dir, "a/hard")),
		os.Symlink("f\xff", filepath.Join(dir, "a/soft")),
		os.Symlink("/nowhere", filepath.Join(dir, "dangling")),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.WriteFile(filepath.Join(dir, ".hidden"), nil, 0o400),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	return dir
}

// describe tells everything about a tree that must survive a copy.
func describeTree(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	inodes := map[uint64]string{}
	err := walk(dir, 100, "", func(at string, st *syscall.Stat_t) bool {
		name := strings.TrimPrefix(at, dir)
		line := name + " " + fileType(st.Mode)
		switch fileType(st.Mode) {
		case "symlink":
			target, _ := os.Readlink(at)
			line += " -> " + target
		case "file":
			content, err := os.ReadFile(at)
			if err != nil {
				t.Fatal(err)
			}
			line += " " + string(rune('0'+st.Mode&7)) + " " + time.Unix(st.Mtim.Sec, st.Mtim.Nsec).UTC().String() + " " + string(content[:min(len(content), 9)])
		}
		if st.Nlink > 1 && fileType(st.Mode) == "file" {
			if first, ok := inodes[st.Ino]; ok {
				line += " = " + first
			} else {
				inodes[st.Ino] = name
			}
		}
		lines = append(lines, line)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func TestTreeThroughTar(t *testing.T) {
	from, to := makeTree(t), t.TempDir()
	var b bytes.Buffer
	p := newPacker(&b)
	var st syscall.Stat_t
	if err := syscall.Stat(from, &st); err != nil {
		t.Fatal(err)
	}
	if err := p.pack(from, &st); err != nil {
		t.Fatal(err)
	}
	if err := unpackInto(t, to, b.Bytes()); err != nil {
		t.Fatal(err)
	}
	if a, b := describeTree(t, from), describeTree(t, to); a != b {
		t.Errorf("packed\n%s\nunpacked\n%s", a, b)
	}
}

func TestTreeCopied(t *testing.T) {
	from, to := makeTree(t), filepath.Join(t.TempDir(), "copy")
	if err := newCopier().copy(from, to); err != nil {
		t.Fatal(err)
	}
	if a, b := describeTree(t, from), describeTree(t, to); a != b {
		t.Errorf("copied\n%s\nto\n%s", a, b)
	}
}

func TestPagesOfAListing(t *testing.T) {
	dir := makeTree(t)
	var all []string
	collect := func(after string, limit int) (page []string) {
		err := walk(dir, 5, after, func(at string, _ *syscall.Stat_t) bool {
			page = append(page, at)
			return len(page) < limit
		})
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	all = collect("", 1000)
	if !sort.SliceIsSorted(all, func(i, j int) bool { return treeLess(all[i], all[j]) }) || len(all) != 8 {
		t.Errorf("%q", all)
	}
	for limit := 1; limit <= 3; limit++ {
		var paged []string
		for after := ""; ; after = paged[len(paged)-1] {
			page := collect(after, limit)
			if len(page) == 0 {
				break
			}
			paged = append(paged, page...)
		}
		if strings.Join(paged, "|") != strings.Join(all, "|") {
			t.Errorf("in pages of %d: %q", limit, paged)
		}
	}
}

func TestGlob(t *testing.T) {
	dir := makeTree(t)
	for pattern, want := range map[string]string{
		"/*":         "/a /dangling /fifo",
		"/.*":        "/.hidden",
		"/a/?ard":    "/a/hard",
		"/a/[!h]*":   "/a/b /a/f\xff /a/soft",
		"/**":        "/a /a/b /a/f\xff /a/hard /a/soft /dangling /fifo",
		"/**/b":      "/a/b",
		"/**/**/f*":  "/a/f\xff /fifo",
		"/a/../fifo": "/a/../fifo",
		"/nothing/*": "",
		"/fifo/*":    "",
		"/a/b/../h*": "/a/b/../hard",
		"/dangling":  "/dangling",
	} {
		answer, err := glob(nil, &globArgs{Pattern: []byte(dir + pattern)})
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
			continue
		}
		var got []string
		for _, at := range answer.(globAnswer).Paths {
			got = append(got, strings.TrimPrefix(string(at), dir))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q", pattern, got)
		}
	}
	for _, bad := range []string{"relative", "/[", ""} {
		if _, err := glob(nil, &globArgs{Pattern: []byte(bad)}); !hasCode(err, "EPROTO") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	first, _ := glob(nil, &globArgs{Pattern: []byte(dir + "/**"), Limit: 3})
	page := first.(globAnswer)
	rest, _ := glob(nil, &globArgs{Pattern: []byte(dir + "/**"), Limit: 100, After: page.Paths[2]})
	if !page.More || len(page.Paths)+len(rest.(globAnswer).Paths) != 7 || rest.(globAnswer).More {
		t.Errorf("pages of %d and %d", len(page.Paths), len(rest.(globAnswer).Paths))
	}
}
