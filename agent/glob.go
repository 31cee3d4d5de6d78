package main

import (
	"os"
	"path"
	"sort"
	"strings"
)

type globArgs struct {
	named
	Pattern []byte `json:"pattern"`
	Limit   int    `json:"limit"`
	After   []byte `json:"after"`
}

type globAnswer struct {
	Paths [][]byte `json:"paths"`
	More  bool     `json:"more"`
}

// glob answers the request of that name. `*`, `?` and `[..]` match within a name, `**` any number of directories; names that begin with a dot
// only match a pattern that does. Links are not followed by `**`. The order is that of list, and so is `after`.
func glob(_ *link, args *globArgs) (any, error) {
	pattern, err := absolute(args.Pattern)
	if err != nil {
		return nil, err
	}
	var parts []string
	for _, part := range strings.Split(pattern, "/") {
		if part == "" || part == "**" && len(parts) > 0 && parts[len(parts)-1] == "**" {
			continue
		}
		part = strings.ReplaceAll(part, "[!", "[^")
		if _, err := path.Match(part, ""); err != nil {
			return nil, protocol("pattern %q: %v", part, err)
		}
		parts = append(parts, part)
	}
	g := &globber{found: map[string]bool{}}
	g.match("/", parts)
	return g.page(args.Limit, string(args.After)), nil
}

// globLimit is how many matches are looked for, whatever the limit of the request.
const globLimit = 100000

type globber struct{ found map[string]bool }

// match finds what the pattern's remaining parts match below a directory. It returns false when there are too many.
func (g *globber) match(dir string, parts []string) bool {
	if len(parts) == 0 {
		g.found[dir] = true
		return len(g.found) < globLimit
	}
	part, rest := parts[0], parts[1:]
	if !strings.ContainsAny(part, `*?[\`) {
		at := join(dir, part)
		if _, err := os.Lstat(at); err != nil {
			return true
		}
		return g.match(at, rest)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return true // no directory, or one that may not be read: nothing matches there
	}
	if part == "**" {
		return g.matchDeep(dir, entries, parts)
	}
	for _, d := range entries {
		if matchName(part, d.Name()) && !g.match(join(dir, d.Name()), rest) {
			return false
		}
	}
	return true
}

// matchDeep matches `**` and what follows it: in this directory, and in those below.
func (g *globber) matchDeep(dir string, entries []os.DirEntry, parts []string) bool {
	rest := parts[1:]
	for _, d := range entries {
		name := d.Name()
		at := join(dir, name)
		hidden := strings.HasPrefix(name, ".")
		if len(rest) == 0 && !hidden && !g.match(at, nil) {
			return false
		}
		if len(rest) > 0 && matchName(rest[0], name) && !g.match(at, rest[1:]) {
			return false
		}
		if !hidden && d.IsDir() && !g.match(at, parts) {
			return false
		}
	}
	return true
}

// page sorts the matches and picks those that fit an answer.
func (g *globber) page(limit int, after string) globAnswer {
	paths := make([]string, 0, len(g.found))
	for at := range g.found {
		if after == "" || treeLess(after, at) {
			paths = append(paths, at)
		}
	}
	sort.Slice(paths, func(i, j int) bool { return treeLess(paths[i], paths[j]) })
	answer := globAnswer{Paths: [][]byte{}, More: len(g.found) >= globLimit}
	size := 0
	for _, at := range paths {
		size += (len(at)+2)/3*4 + 3
		if limit > 0 && len(answer.Paths) == limit || size > answerBudget {
			answer.More = true
			break
		}
		answer.Paths = append(answer.Paths, []byte(at))
	}
	return answer
}

// matchName is path.Match with the shell's rule for hidden names.
func matchName(pattern, name string) bool {
	if strings.HasPrefix(name, ".") && !strings.HasPrefix(pattern, ".") {
		return false
	}
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// treeLess tells whether a comes before b in the order of list: names compared part by part.
func treeLess(a, b string) bool {
	for {
		x, restA, moreA := strings.Cut(strings.TrimPrefix(a, "/"), "/")
		y, restB, moreB := strings.Cut(strings.TrimPrefix(b, "/"), "/")
		if x != y {
			return x < y
		}
		if !moreA || !moreB {
			return !moreA && moreB
		}
		a, b = restA, restB
	}
}
