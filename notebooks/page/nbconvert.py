"""How `make` executes the lessons and makes their pages: nbconvert --config page/nbconvert.py, in notebooks/."""

c = get_config()  # noqa: F821  nbconvert defines it
c.ExecutePreprocessor.kernel_name = "python3"
c.ExecutePreprocessor.timeout = -1  # none
c.ExecutePreprocessor.allow_errors = True  # every cell runs, even where one fails
c.ExecutePreprocessor.extra_arguments = [
    "--log-level=ERROR",
    "--IPKernelApp.capture_fd_output=False",  # TensorFlow's messages from C++ do not stand under a cell
]
c.TemplateExporter.extra_template_basedirs = ["."]
c.HTMLExporter.template_name = "page"
