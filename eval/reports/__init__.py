"""What is shown of a result: tables, pages, pictures, MLflow."""
