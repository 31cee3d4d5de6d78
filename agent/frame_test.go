package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
)

func TestFrameRoundTrip(t *testing.T) {
	for _, h := range []header{
		{kind: typeRequest, channel: 1<<32 - 1},
		{kind: typeData, flags: flagFin, stream: streamErr, channel: 7, offset: 1<<40 + 3},
		{kind: typeAck, stream: streamOut, channel: 7, offset: maxOffset},
	} {
		first := h.encode()
		payload := []byte{1, 2, 3, 4}
		got, rest, err := parseFrame(append(first[:], payload...))
		if err != nil || got != h || !bytes.Equal(rest, payload) {
			t.Errorf("%+v came back as %+v, %v, %v", h, got, rest, err)
		}
	}
}

func TestBadFramesAreRefused(t *testing.T) {
	frame := func(h header, payload ...byte) []byte {
		b := h.encode()
		return append(b[:], payload...)
	}
	for name, packet := range map[string][]byte{
		"empty":              {},
		"short":              make([]byte, headerSize-1),
		"long":               make([]byte, frameLimit+1),
		"type 0":             frame(header{}),
		"type 6":             frame(header{kind: 6}),
		"request with FIN":   frame(header{kind: typeRequest, flags: flagFin}),
		"request in stream":  frame(header{kind: typeRequest, stream: 1}),
		"request at offset":  frame(header{kind: typeRequest, offset: 1}),
		"unknown flag":       frame(header{kind: typeData, flags: 2}),
		"offset that wraps":  frame(header{kind: typeData, offset: 1<<64 - 1}),
		"ack without window": frame(header{kind: typeAck}),
		"ack too long":       frame(header{kind: typeAck}, 1, 2, 3, 4, 5),
		"ack beyond bounds":  frame(header{kind: typeAck, offset: maxOffset + 1}, 1, 2, 3, 4),
	} {
		if _, _, err := parseFrame(packet); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	for _, h := range []header{{kind: typeRequest, channel: 3}, {kind: typeData, flags: 1, stream: 1, channel: 2, offset: 9}, {kind: typeAck, channel: 2}} {
		first := h.encode()
		f.Add(append(first[:], 1, 2, 3, 4))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		h, payload, err := parseFrame(packet)
		if err != nil {
			return
		}
		first := h.encode()
		if !bytes.Equal(append(first[:], payload...), packet) {
			t.Errorf("%x is not what it was parsed from", packet)
		}
	})
}

// Whatever a request says, decoding answers with arguments or EPROTO.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"op":"start","channel":1,"id":"pr-1","argv":["bHM="],"env":[],"cwd":null,"user":null,"pty":{"rows":1,"cols":2},"stdin":true}`))
	f.Add([]byte(`{"op":"claim","hostname":"x","memory":1,"cpus":1,"pids":0,"tmp":1,"files":[{"path":"Lw==","content":"","mode":1}],"volumes":[],"sudo":true,"env":[]}`))
	f.Add([]byte(`{"op":"hello","version":1,"epoch":2,"channels":[{"channel":1,"received":{"1":2}}]}`))
	f.Add([]byte(`[[[[[[[[`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, try := range []func([]byte) error{
			decodes[startArgs], decodes[claimArgs], decodes[helloArgs], decodes[signalArgs], decodes[writeArgs], decodes[readArgs], decodes[listArgs],
			decodes[volumeArgs], decodes[dialArgs], decodes[watchArgs], decodes[globArgs], decodes[tarInArgs], decodes[nothing],
		} {
			var failure *failure
			if err := try(payload); err != nil && (!errors.As(err, &failure) || failure.Code != "EPROTO") {
				t.Errorf("%q: %v", payload, err)
			}
		}
	})
}

func decodes[A any](payload []byte) error {
	_, err := decode[A](payload)
	return err
}

func TestUnknownFieldsAreRefused(t *testing.T) {
	if err := decodes[nothing]([]byte(`{"op":"ping","colour":"red"}`)); !hasCode(err, "EPROTO") {
		t.Errorf("got %v", err)
	}
}

func TestAnswersAreObjects(t *testing.T) {
	for _, c := range []struct {
		answer any
		err    error
		want   string
	}{
		{nil, nil, `{"ok":true}`},
		{nothing{}, nil, `{"ok":true,"op":""}`},
		{startAnswer{7}, nil, `{"ok":true,"pid":7}`},
		{nil, protocol("no"), `{"ok":false,"error":{"code":"EPROTO","message":"no"}}`},
	} {
		got := encodeAnswer(c.answer, c.err)
		if string(got) != c.want || !json.Valid(got) {
			t.Errorf("%v, %v: %s", c.answer, c.err, got)
		}
	}
}
