// Command spelling says how Go and kube-apiserver read requests: the table that
// hublet's parser is tested against.
//
//	go run ./spelling < ../data/spelling/requests.txt > ../data/spelling/readings.jsonl
//
// A line of input is a method and a request target, a line of output what
// net/http, RequestInfoFactory and the API server's option types make of it.
// Lines that begin with # are left out.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"maps"
	"net/http"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// reading is what the server makes of one request.
type reading struct {
	Call string `json:"call"`
	// Refused: net/http, RequestInfoFactory or the validation of list options says no, whatever the selectors.
	Refused     bool   `json:"refused"`
	Path        string `json:"path"`
	Resource    bool   `json:"isResource"`
	Verb        string `json:"verb"`
	Group       string `json:"group"`
	Version     string `json:"version"`
	Namespace   string `json:"namespace"`
	Plural      string `json:"resource"`
	Name        string `json:"name"`
	Subresource string `json:"subresource"`

	LabelSelector     string `json:"labelSelector"`
	FieldSelector     string `json:"fieldSelector"`
	ResourceVersion   string `json:"resourceVersion"`
	Match             string `json:"resourceVersionMatch"`
	Continue          string `json:"continue"`
	Limit             int64  `json:"limit"`
	TimeoutSeconds    *int64 `json:"timeoutSeconds"`
	SendInitialEvents bool   `json:"sendInitialEvents"`
	Bookmarks         bool   `json:"allowWatchBookmarks"`
	DryRun            bool   `json:"dryRun"`
	Hash              string `json:"hash"`
}

var factory = request.RequestInfoFactory{
	APIPrefixes:          sets.NewString("api", "apis"),
	GrouplessAPIPrefixes: sets.NewString("api"),
}

func read(call string) reading {
	out := reading{Call: call}
	wire := call + " HTTP/1.1\r\nHost: kubernetes\r\n\r\n"
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(wire)))
	if err != nil {
		out.Refused = true
		return out
	}
	info, err := factory.NewRequestInfo(req)
	if err != nil {
		out.Refused = true
	}
	query := req.URL.Query()
	out.Path, out.Resource, out.Verb = info.Path, info.IsResourceRequest, info.Verb
	out.Group, out.Version, out.Namespace = info.APIGroup, info.APIVersion, info.Namespace
	out.Plural, out.Name, out.Subresource = info.Resource, info.Name, info.Subresource
	out.DryRun, out.Hash = len(query["dryRun"]) > 0, query.Get("hash")
	if !info.IsResourceRequest {
		return out
	}
	list := metav1.ListOptions{}
	switch info.Verb {
	case "list", "watch", "deletecollection":
		internal, others := internalversion.ListOptions{}, maps.Clone(query)
		// A malformed selector is an error of its own: what it selects is nobody's business here.
		delete(others, "labelSelector")
		delete(others, "fieldSelector")
		if err := internalscheme.ParameterCodec.DecodeParameters(others, metav1.SchemeGroupVersion, &internal); err != nil {
			out.Refused = true
			return out
		}
		internalversion.SetListOptionsDefaults(&internal, true)
		if len(validation.ValidateListOptions(&internal, true)) > 0 {
			out.Refused = true
		}
		if err := metav1.Convert_url_Values_To_v1_ListOptions(&query, &list, nil); err != nil {
			out.Refused = true
		}
	case "get":
		get := metav1.GetOptions{}
		if err := metav1.Convert_url_Values_To_v1_GetOptions(&query, &get, nil); err != nil {
			out.Refused = true
		}
		list.ResourceVersion = get.ResourceVersion
	}
	out.LabelSelector, out.FieldSelector = list.LabelSelector, list.FieldSelector
	out.ResourceVersion, out.Match = list.ResourceVersion, string(list.ResourceVersionMatch)
	out.Continue, out.Limit, out.TimeoutSeconds = list.Continue, list.Limit, list.TimeoutSeconds
	out.SendInitialEvents = list.SendInitialEvents != nil && *list.SendInitialEvents
	out.Bookmarks = list.AllowWatchBookmarks
	return out
}

func main() {
	lines, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	lines.Buffer(nil, 1<<20)
	out.SetEscapeHTML(false)
	for lines.Scan() {
		if line := lines.Text(); line != "" && !strings.HasPrefix(line, "#") {
			if err := out.Encode(read(line)); err != nil {
				log.Fatal(err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
