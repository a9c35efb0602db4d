/* NVML's calls that the server makes, answered from NVML_STANDIN="name,pci device,major,minor,total MiB,free MiB;...".
   Built by test_gpus.py as libnvidia-ml.so.1 and loaded by the real nvidia-ml-py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, MAX = 16 };

static struct gpu { char name[64]; unsigned pci, total_mib, free_mib; int major, minor; } gpus[MAX];
static unsigned num_gpus;

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;

int nvmlInitWithFlags(unsigned flags) {
    const char *given = getenv("NVML_STANDIN");
    (void)flags;
    if (!given) return DRIVER_NOT_LOADED;
    num_gpus = 0;
    while (*given && num_gpus < MAX) {
        struct gpu *g = &gpus[num_gpus];
        if (sscanf(given, "%63[^,],%x,%d,%d,%u,%u", g->name, &g->pci, &g->major, &g->minor, &g->total_mib, &g->free_mib) != 6)
            return INVALID;
        num_gpus++;
        given = strchr(given, ';');
        if (!given) break;
        given++;
    }
    return OK;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Not Supported"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { snprintf(out, size, "580.65.06"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = num_gpus; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, struct gpu **out) {
    if (i >= num_gpus) return INVALID;
    *out = &gpus[i];
    return OK;
}
int nvmlDeviceGetName(struct gpu *g, char *out, unsigned size) { snprintf(out, size, "%s", g->name); return OK; }
int nvmlDeviceGetCudaComputeCapability(struct gpu *g, int *major, int *minor) {
    *major = g->major;
    *minor = g->minor;
    return OK;
}
int nvmlDeviceGetMemoryInfo(struct gpu *g, memory_t *out) {
    out->total = (unsigned long long)g->total_mib << 20;
    out->free = (unsigned long long)g->free_mib << 20;
    out->used = out->total - out->free;
    return OK;
}
int nvmlDeviceGetUtilizationRates(struct gpu *g, utilization_t *out) { (void)g; out->gpu = 7; out->memory = 0; return OK; }
int nvmlDeviceGetMigMode(struct gpu *g, unsigned *now, unsigned *next) { (void)g; (void)now; (void)next; return NOT_SUPPORTED; }
int nvmlDeviceGetPciInfo_v3(struct gpu *g, pci_t *out) {
    memset(out, 0, sizeof *out);
    out->id = g->pci << 16 | 0x10de;
    return OK;
}
